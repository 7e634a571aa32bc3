"""A task's own run depends on this task alone: other sets of tasks train what is new."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    FEATURES,
    bert_model,
    files_below,
    flip_byte,
    same,
    save_bert,
    token_task,
    toy_body,
    toy_definition,
    toy_settings,
    toy_task,
)
from torch import nn

import optuna_merge as om
from optuna_merge.finetuning import FinetuneStore, RunInfo, Watcher, watched_by
from optuna_merge.fitting import finetune_store
from optuna_merge.models import MultitaskModel, from_module
from optuna_merge.tasks import Task

ALONE = {"red": 1.0, "blue": 0.0}


class Begun(Watcher):
    """Notes the tasks of each training that begins."""

    def __init__(self) -> None:
        self.tasks: list[str] = []

    def started(self, run: RunInfo) -> None:
        self.tasks.append("+".join(name for name, weight in run.weights.items() if weight))


def red(**changes: Any) -> Task:
    return toy_task("red", 1, **changes)


def blue(seed: int = 2, **changes: Any) -> Task:
    return toy_task("blue", seed, classes=3, **changes)


def green(name: str = "green", **changes: Any) -> Task:
    return toy_task(name, 3, **changes)


def named_heads(tasks: Sequence[Task], body: nn.Module | None = None) -> MultitaskModel:
    """Each head starts as its own name has it, whatever other heads there are."""
    heads = {}
    for task in tasks:
        with torch.random.fork_rng():
            torch.manual_seed(len(str(task.head)))
            heads[str(task.head)] = nn.Linear(FEATURES, task.num_outputs)
    return from_module(body or toy_body(), tasks, heads=heads, inputs=["x"])


def fitted(
    folder: Path, *tasks: Task, drawn: bool = False, **changes: Any
) -> tuple[om.FittedStudy, list[str]]:
    """A fit, and the tasks of the trainings that it began."""
    if not drawn:
        changes.setdefault("model", named_heads(tasks))
    begun = Begun()
    with watched_by(begun):
        # The finetune at uniform weights belongs to its set of tasks: without it here.
        plain = {"preview": om.PreviewSettings(anchor="none")} | changes
        found = om.fit(toy_definition(tasks, **plain), folder, progress=False)
    return found, begun.tasks


def curvatures(folder: Path) -> dict[str, int]:
    return {name: time for name, time in files_below(folder).items() if "curvature-" in name}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder of a fit of three tasks; not to be written to."""
    folder = tmp_path_factory.mktemp("three")
    assert fitted(folder, red(), blue(), green())[1] == ["red", "blue", "green"]
    return folder


@pytest.fixture
def workdir(three: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(three, tmp_path / "workdir"))


@pytest.mark.parametrize(
    "tasks, trained",
    [
        ((red(), blue(), green()), []),
        ((red(), blue(), green(), toy_task("black", 4)), ["black"]),
        ((toy_task("black", 4), red(), blue(), green()), ["black"]),
        ((red(), blue()), []),
        ((blue(), green()), []),
        ((red(), green()), []),
        ((green(), blue(), red()), []),
        ((red(), blue(seed=5), green()), ["blue"]),
        ((red(), blue(), green("olive")), ["olive"]),  # its name seeds the order of its data
    ],
    ids=[
        "the same",
        "one more",
        "one more before",
        "without the last",
        "without the first",
        "without the middle",
        "in another order",
        "other data",
        "another name",
    ],
)
def test_only_what_is_new_is_trained(
    tasks: tuple[Task, ...], trained: list[str], workdir: Path, tmp_path: Path
) -> None:
    before = curvatures(workdir)
    found, begun = fitted(workdir, *tasks)
    assert begun == trained
    after = curvatures(workdir)
    assert {name: after[name] for name in before} == before
    new = {Path(name).name.split("-")[1] for name in after.keys() - before.keys()}
    assert new == set(trained)
    # It is the fit that one makes anew, to the last digit.
    fresh, _ = fitted(tmp_path / "fresh", *tasks)
    assert found.fingerprint == fresh.fingerprint
    assert found.reference_point == fresh.reference_point
    for name, run in found.runs.items():
        assert run.evaluations == fresh.runs[name].evaluations
        assert same(run.parameters(), fresh.runs[name].parameters())
    # And what was done is done.
    files = files_below(workdir)
    assert fitted(workdir, *tasks)[1] == []
    assert files_below(workdir) == files


@pytest.mark.parametrize("estimator", ["squared_gradients", "ivon"])
def test_each_component_of_a_mixture_is_found(estimator: Any, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "finetuning": toy_settings(optimizer="ivon" if estimator == "ivon" else "adamw"),
        "posterior": om.PosteriorSettings(
            estimator=estimator, components=2, examples=16, damping_examples=20, chunk_size=8
        ),
    }
    fitted(tmp_path, red(), blue(), **changes)
    found, begun = fitted(tmp_path, red(), blue(), green(), **changes)
    assert begun == ["green", "green"]
    fresh, _ = fitted(tmp_path / "fresh", red(), blue(), green(), **changes)
    assert found.fingerprint == fresh.fingerprint


def test_heads_that_are_drawn_in_order_start_otherwise_behind_a_new_one(tmp_path: Path) -> None:
    fitted(tmp_path, red(), blue(), drawn=True)
    assert fitted(tmp_path, red(), blue(), green(), drawn=True)[1] == ["green"]
    tasks = (green("olive"), red(), blue())
    found, begun = fitted(tmp_path, *tasks, drawn=True)
    assert begun == ["olive", "red", "blue"]
    assert found.fingerprint == fitted(tmp_path / "fresh", *tasks, drawn=True)[0].fingerprint


def test_a_head_that_becomes_shared_is_another(tmp_path: Path) -> None:
    fitted(tmp_path, red(head="pair"), blue())
    tasks = (red(head="pair"), blue(), green(head="pair"))
    found, begun = fitted(tmp_path, *tasks)
    assert begun == ["red", "blue", "green"]  # the head is merged now, a part of all posteriors
    assert found.fingerprint == fitted(tmp_path / "fresh", *tasks)[0].fingerprint
    more = (*tasks, toy_task("black", 4, head="pair"))
    assert fitted(tmp_path, *more)[1] == ["black"]


def test_another_body_or_other_settings_are_all_new(workdir: Path) -> None:
    tasks = (red(), blue(), green())
    assert len(fitted(workdir, *tasks, finetuning=toy_settings(seed=1))[1]) == 3
    body = toy_body(dropout=0.0)
    with torch.no_grad():
        body.get_parameter("0.bias").add_(1)
    assert len(fitted(workdir, *tasks, model=named_heads(tasks, body))[1]) == 3


def test_finetunes_of_several_tasks_are_of_all(workdir: Path) -> None:
    def path(*tasks: Task) -> Path:
        store = finetune_store(toy_definition(tasks, model=named_heads(tasks)), workdir)
        weights = {"red": 0.5, "blue": 0.5} | {task.name: 0.0 for task in tasks[2:]}
        return store.path(weights, toy_settings())

    assert len({path(red(), blue()), path(red(), blue(), green()), path(red(), blue(5))}) == 3


def test_the_end_is_evaluated_on_tasks_that_came_later(
    workdir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = (red(), blue(), green(), toy_task("black", 4))
    found, _ = fitted(workdir, *tasks)
    run = found.runs["red"]
    assert list(run.rungs) == [7] and list(found.runs["black"].rungs) == [3, 5, 7]
    assert list(run.evaluations) == ["red", "blue", "green", "black"]
    (path,) = run.path.parent.glob("evaluation-*")
    assert run.files == (run.path, path) and path in found.files
    weights = {task.name: float(task.name == "red") for task in tasks}
    assert found.store.find(weights, toy_settings()) == run
    flip_byte(path, 40)
    assert found.store.find(weights, toy_settings()) is None
    with caplog.at_level(logging.WARNING):
        again, begun = fitted(workdir, *tasks)
    assert f"evaluating again: {path}" in caplog.text
    assert begun == [] and again.runs["red"] == run
    # The three tasks are as they were.
    three, begun = fitted(workdir, red(), blue(), green())
    assert begun == [] and list(three.runs["red"].rungs) == [3, 5, 7]
    assert three.runs["red"].files == (run.path,)


def test_test_metrics_are_of_these_tasks(workdir: Path) -> None:
    one, _ = fitted(workdir, red(), blue(), green())
    other, _ = fitted(workdir, red(), blue(5), green())
    runs = one.runs["red"], other.runs["red"]
    assert runs[0].path == runs[1].path
    assert one.store.test_path(runs[0]) != other.store.test_path(runs[1])


def test_a_store_of_other_tasks_finds_a_task_s_own_run(tmp_path: Path) -> None:
    settings, tasks = toy_settings(), (red(), blue())
    store = FinetuneStore(tmp_path, {"red": "r", "blue": "b"})
    run = store.run(named_heads(tasks), tasks, ALONE, settings)
    few = FinetuneStore(tmp_path, {"red": "r"})
    found = few.find({"red": 1.0}, settings)
    assert found is not None and found.path == run.path
    assert {step: list(rung) for step, rung in found.rungs.items()} == {
        step: ["red"] for step in (3, 5, 7)
    }
    for keys in ({"red": "other", "blue": "b"}, {"red": "r", "blue": "other"}):
        assert FinetuneStore(tmp_path, keys).find(ALONE, settings) is None


def test_the_frozen_trunk_is_run_on_new_data_only(tmp_path: Path) -> None:
    body = save_bert(tmp_path / "bert")

    def fit(*tasks: Task) -> set[str]:
        definition = toy_definition(tasks, model=bert_model(body, tasks))
        om.fit(definition, tmp_path / "workdir", progress=False)
        return set(files_below(tmp_path / "workdir" / "trunk"))

    two = fit(token_task("one", 1), token_task("two", 2, classes=3))
    three = fit(token_task("one", 1), token_task("two", 2, classes=3), token_task("three", 3))
    assert len(two) == 4 and two < three and len(three) == 6
