"""Finetuning: one loop for a task's own run and for the real, weighted multitask run."""

from optuna_merge.finetuning._group import Group, current_group, joined_group, make_accelerator
from optuna_merge.finetuning._ivon import IVON
from optuna_merge.finetuning._loop import FinetuneResult, finetune, train_along, training_device
from optuna_merge.finetuning._settings import FinetuneSettings
from optuna_merge.finetuning._shards import hollow_shards
from optuna_merge.finetuning._store import (
    FinetuneStore,
    FinishedRun,
    Given as Given,
    Start,
)
from optuna_merge.finetuning._tensorboard import TensorBoard
from optuna_merge.finetuning._watchers import RunInfo, Watcher, watched_by

__all__ = [
    "IVON",
    "FinetuneResult",
    "FinetuneSettings",
    "FinetuneStore",
    "FinishedRun",
    "Group",
    "RunInfo",
    "Start",
    "TensorBoard",
    "Watcher",
    "current_group",
    "finetune",
    "hollow_shards",
    "joined_group",
    "make_accelerator",
    "train_along",
    "training_device",
    "watched_by",
]
