"""Multitask models: one shared body with heads, and the choice of what is trained and merged."""

from optuna_merge.models._evaluate import evaluate_tasks, task_batches
from optuna_merge.models._generation import GenerationSettings, LanguageModel
from optuna_merge.models._language import from_language_model
from optuna_merge.models._module import BodyAndHead, from_module
from optuna_merge.models._multitask import BatchNorm, MultitaskModel
from optuna_merge.models._timm import from_timm, timm_body
from optuna_merge.models._trainable import LastLayers, Matching, Trainable, find_layers
from optuna_merge.models._transformers import from_transformers, quiet
from optuna_merge.models._trunk import cache_trunk

__all__ = [
    "BatchNorm",
    "BodyAndHead",
    "GenerationSettings",
    "LanguageModel",
    "LastLayers",
    "Matching",
    "MultitaskModel",
    "Trainable",
    "cache_trunk",
    "evaluate_tasks",
    "find_layers",
    "from_language_model",
    "from_module",
    "from_timm",
    "from_transformers",
    "quiet",
    "task_batches",
    "timm_body",
]
