"""What `test_distributed.py` launches in two processes.

torchrun --nproc_per_node 2 _launched.py FOLDER
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import optuna
from helpers import toy_definition, toy_model, toy_settings, toy_tasks

import optuna_merge as om
from optuna_merge._tensors import save_tensors
from optuna_merge.definition import StudyDefinition
from optuna_merge.exceptions import TrainingDivergedError
from optuna_merge.finetuning import FinetuneStore
from optuna_merge.fitting import FittedStudy
from optuna_merge.pruners import PromotionPruner

WEIGHTS = {"red": 0.3, "blue": 0.7}
IVON = toy_settings(optimizer="ivon", learning_rate=0.5, batch_size=9)


def definition() -> StudyDefinition:
    tasks = toy_tasks()
    return toy_definition(tasks, model=toy_model(tasks, dropout=0.0))


def stop(step: int, evaluations: object) -> None:
    raise optuna.TrialPruned


def finetunes(fitted: FittedStudy, folder: Path) -> None:
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
    om.prepare_study(found, fitted)
    om.run_trials(found, om.Objective(fitted, progress=False), workdir=folder, n_trials=8)


def all_finetunes(folder: Path) -> FinetuneStore:
    """What the launch does; also done by the test alone."""
    fitted = om.fit(definition(), folder, progress=False)
    finetunes(fitted, folder)
    return fitted.store


def main(folder: Path) -> None:
    made = definition()
    rank = os.environ["RANK"]
    with om.process_group(made) as leads:
        if leads:
            fitted = om.fit(made, folder, progress=False)
            study(fitted, folder)
            finetunes(fitted, folder)
    # The last run's parameters, as this process has them.
    save_tensors(made.model.state(), folder / f"rank-{rank}.safetensors", {})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
