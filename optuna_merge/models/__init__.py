"""Multitask models: one shared body with heads, and the choice of what is trained and merged."""

from optuna_merge.models._evaluate import evaluate_tasks, task_batches
from optuna_merge.models._generation import GenerationSettings, LanguageModel as LanguageModel
from optuna_merge.models._language import from_language_model
from optuna_merge.models._module import BodyAndHead as BodyAndHead, from_module
from optuna_merge.models._multitask import BatchNorm, MultitaskModel
from optuna_merge.models._timm import from_timm, timm_body as timm_body
from optuna_merge.models._trainable import LastLayers, Matching, Trainable
from optuna_merge.models._transformers import from_transformers, quiet as quiet
from optuna_merge.models._trunk import cache_trunk

__all__ = [
    "BatchNorm",
    "GenerationSettings",
    "LastLayers",
    "Matching",
    "MultitaskModel",
    "Trainable",
    "cache_trunk",
    "evaluate_tasks",
    "from_language_model",
    "from_module",
    "from_timm",
    "from_transformers",
    "task_batches",
]
