"""Data that are transformed at random when they are read: the same in every process."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import same, toy_definition, toy_tasks
from torch import Tensor

import optuna_merge as om
from optuna_merge.tasks import Batch, Task, TensorData
from optuna_merge.tasks._draws import own_draws

WEIGHTS = {"red": 0.4, "blue": 0.6}
SOURCES = {
    "torch": lambda: float(torch.randn(())),
    "random": lambda: random.gauss(0, 1),
    "numpy": lambda: float(np.random.normal()),  # noqa: NPY002
}


class Shaken(TensorData):
    """Every read moves all features by one random number."""

    def __init__(self, columns: dict[str, Tensor], source: str) -> None:
        super().__init__(columns)
        self._draw = SOURCES[source]

    def __getitem__(self, indices: list[int]) -> Batch:
        batch = super().__getitem__(indices)
        return batch | {"x": batch["x"] + self._draw()}


def shaken_tasks(source: str) -> tuple[Task, ...]:
    """The toy tasks, their training data shaken."""
    tasks = []
    for task in toy_tasks():
        data = task.data("train")
        assert isinstance(data, TensorData)
        tasks.append(replace(task, train=Shaken(data.columns, source)))
    return tuple(tasks)


@pytest.mark.parametrize("source", SOURCES)
def test_runs_posteriors_and_previews_are_the_same_everywhere(source: str, tmp_path: Path) -> None:
    found = []
    for process in range(2):
        random.seed(process)
        np.random.seed(process)  # noqa: NPY002
        torch.manual_seed(process)
        tasks = shaken_tasks(source)
        study = om.fit(toy_definition(tasks), tmp_path / str(process), progress=False)
        assert study.definition.settled_preview.heads == "resolved"
        previews = [study.previewer.merged(WEIGHTS) for _ in range(2)]
        assert same(*previews)
        found.append((study.parts, previews[0]))
    assert found[0][0] == found[1][0]
    assert same(found[0][1], found[1][1])


@pytest.mark.parametrize("source", SOURCES)
def test_the_draws_are_shaken_and_the_processs_own_go_on(source: str) -> None:
    draw = SOURCES[source]
    with own_draws(torch.device("cpu"), seed=3):
        first = [draw() for _ in range(3)]
    assert len(set(first)) == 3
    with own_draws(torch.device("cpu"), seed=5):
        expected, after = [draw(), draw()], []
    with own_draws(torch.device("cpu"), seed=5):
        after.append(draw())
        with own_draws(torch.device("cpu"), seed=3):
            assert [draw() for _ in range(3)] == first
        after.append(draw())
    assert after == expected
