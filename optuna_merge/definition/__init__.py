"""What a study is about: tasks, model, finetuning, posteriors, score; in Python or as YAML."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from optuna_merge.definition._template import TEMPLATE

if TYPE_CHECKING:
    from optuna_merge.definition._definition import PosteriorSettings, StudyDefinition
    from optuna_merge.definition._load import load_yaml

_WITH_TORCH = {
    "PosteriorSettings": "_definition",
    "StudyDefinition": "_definition",
    "load_yaml": "_load",
}

__all__ = ["TEMPLATE", "PosteriorSettings", "StudyDefinition", "load_yaml"]


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:  # the template needs no torch
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WITH_TORCH[name]}"), name)
