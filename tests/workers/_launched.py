"""What `test_distributed.py` launches in two processes.

torchrun --nproc_per_node 2 _launched.py FOLDER
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers import (
    bert_model,
    same,
    token_task,
    toy_definition,
    toy_model,
    toy_settings,
    toy_tasks,
)
from torch import nn

import optuna_merge as om
from optuna_merge._base.tensors import save_tensors
from optuna_merge.definition import StudyDefinition
from optuna_merge.exceptions import TrainingDivergedError
from optuna_merge.finetuning import FinetuneStore, hollow_shards
from optuna_merge.finetuning._shards import Sharding, in_shards, whole
from optuna_merge.fitting import FittedStudy, finetune_store
from optuna_merge.models import LastLayers, from_module
from optuna_merge.pruners import PromotionPruner

WEIGHTS = {"red": 0.3, "blue": 0.7}
IVON = toy_settings(optimizer="ivon", learning_rate=0.5, batch_size=9)


ALONE_FIRST = toy_settings(seed=1)
"""Of a run that one process begins and the launch ends in shards."""
SHARDS_FIRST = toy_settings(seed=2)
"""The other way round."""


def definition() -> StudyDefinition:
    tasks = toy_tasks()
    return toy_definition(tasks, model=toy_model(tasks, dropout=0.0))


def bert_definition(folder: Path) -> StudyDefinition:
    """Layers that are put together one at a time; the first one is frozen, and skipped."""
    tasks = token_task("red", 1), token_task("blue", 2, classes=3)
    model = bert_model(str(folder / "bert"), tasks, trainable=LastLayers(2))
    return toy_definition(tasks, model=model)


def stop(step: int, evaluations: object) -> None:
    raise optuna.TrialPruned


def begin(made: StudyDefinition, folder: Path, settings: om.FinetuneSettings) -> None:
    """Leave a checkpoint of the first rung."""
    try:
        finetune_store(made, folder).run(made.model, made.tasks, WEIGHTS, settings, on_rung=stop)
        raise AssertionError("it was not stopped")
    except optuna.TrialPruned:
        pass


def end(made: StudyDefinition, folder: Path, settings: om.FinetuneSettings) -> None:
    """Go on from it, if it is there."""
    finetune_store(made, folder).run(made.model, made.tasks, WEIGHTS, settings)


def finetunes(fitted: FittedStudy) -> None:
    """Runs of all kinds; their files are compared with those of one process."""
    model, tasks, store = fitted.model, fitted.tasks, fitted.store
    settings = fitted.definition.finetuning
    store.run(model, tasks, {"red": 0.5, "blue": 0.5}, replace(settings, batch_size=1))
    try:
        store.run(model, tasks, WEIGHTS, settings, on_rung=stop)
        raise AssertionError("it was not stopped")
    except optuna.TrialPruned:
        pass
    store.run(model, tasks, WEIGHTS, settings)  # goes on from the first rung
    try:
        store.run(model, tasks, WEIGHTS, replace(settings, learning_rate=1e20))
        raise AssertionError("it did not diverge")
    except TrainingDivergedError:
        pass
    store.run(model, tasks, WEIGHTS, IVON)


def study(fitted: FittedStudy, folder: Path) -> None:
    found = om.open_study(
        "s",
        om.create_storage(f"sqlite:///{folder}/study.db"),
        "maximize",
        sampler=om.PreviewSampler(fitted.definition.names, seed=0),
        pruner=PromotionPruner(fraction=0.5, warmup=2, seed=0),
    )
    om.prepare_study(found, fitted, second_seed=False)
    om.run_trials(found, om.Objective(fitted, progress=False), workdir=folder, n_trials=8)


def all_finetunes(made: StudyDefinition, folder: Path) -> FinetuneStore:
    """What the launch does; also done by the test alone."""
    fitted = om.fit(made, folder, progress=False)
    finetunes(fitted)
    return fitted.store


def bert_finetunes(made: StudyDefinition, folder: Path) -> FinetuneStore:
    """The same with `bert_definition`."""
    fitted = om.fit(made, folder, progress=False)
    fitted.store.run(fitted.model, fitted.tasks, WEIGHTS, made.finetuning)
    return fitted.store


def copies(folder: Path) -> None:
    """By data parallelism, with a study."""
    made = definition()
    with om.process_group(made) as leads:
        if leads:
            fitted = om.fit(made, folder / "copies", progress=False)
            study(fitted, folder)
            finetunes(fitted)
    # The last run's parameters, as this process has them.
    save_tensors(made.model.state(), folder / f"rank-{os.environ['RANK']}.safetensors", {})


def check_cuts() -> None:
    """Each process holds its part of all that is trained; what can't be cut is refused."""
    device, tasks = torch.device("cpu"), toy_tasks()
    model = toy_model(tasks)
    cut = in_shards(model, Sharding(), device)
    parameters = list(cut.parameters())
    assert same(
        {name: whole(p) for name, p in cut.named_parameters()}, dict(model.named_parameters())
    )
    batch = tasks[0].data("train")[[0, 1, 2]]
    sum(cut(batch, task.name).square().sum() for task in tasks).backward()
    optimizer = torch.optim.AdamW(parameters)
    optimizer.step()
    moments = [optimizer.state[p]["exp_avg"] for p in parameters]
    for held in (parameters, [p.grad for p in parameters], moments):
        numbers = sum(part.to_local().numel() for part in held)
        assert numbers < 0.6 * sum(p.numel() for p in model.parameters())

    def refused(made: nn.Module, sharding: Sharding, reason: str) -> None:
        model = from_module(made, tasks, features=6, inputs=["x"])
        with pytest.raises(ValueError, match=reason):
            hollow_shards(model, sharding, device)

    tied = nn.Sequential(nn.ModuleList([nn.Tanh(), nn.Tanh()]), nn.Linear(6, 6), nn.Linear(6, 6))
    tied[1].weight = tied[2].weight
    refused(tied, Sharding(layers=("Linear",)), "in common")
    refused(tied, Sharding(layers=("Layer",)), "no such module")
    tied.scale = nn.Parameter(torch.ones(()))
    refused(tied, Sharding(), "scalar")


def shards(folder: Path) -> None:
    """In shards, as if launched with `--use_fsdp --fsdp_version 2`."""
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    check_cuts()
    made = definition()
    with om.process_group(made) as leads:
        if leads:
            end(made, folder / "shards", ALONE_FIRST)
            begin(made, folder / "shards", SHARDS_FIRST)
            all_finetunes(made, folder / "shards")
    made = bert_definition(folder)
    with om.process_group(made) as leads:
        if leads:
            bert_finetunes(made, folder / "bert-shards")


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    logging.getLogger("optuna_merge").setLevel(logging.INFO)
    copies(Path(sys.argv[1]))
    shards(Path(sys.argv[1]))
