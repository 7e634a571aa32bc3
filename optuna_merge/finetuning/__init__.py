"""Finetuning: one loop for a task's own run and for the real, weighted multitask run."""

from optuna_merge.finetuning._ivon import IVON
from optuna_merge.finetuning._loop import FinetuneResult, finetune
from optuna_merge.finetuning._settings import FinetuneSettings
from optuna_merge.finetuning._store import FinetuneStore, FinishedRun, Given as Given, Start
from optuna_merge.finetuning._training import make_accelerator, training_device
from optuna_merge.finetuning._watchers import RunInfo, TensorBoard, Watcher, watched_by

__all__ = [
    "IVON",
    "FinetuneResult",
    "FinetuneSettings",
    "FinetuneStore",
    "FinishedRun",
    "RunInfo",
    "Start",
    "TensorBoard",
    "Watcher",
    "finetune",
    "make_accelerator",
    "training_device",
    "watched_by",
]
