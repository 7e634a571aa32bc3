"""What a study is about: tasks, model, finetuning, posteriors, score; in Python or as YAML."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna_merge._base.lazy import lazy_names
from optuna_merge.definition._templates import TEMPLATES

if TYPE_CHECKING:
    from optuna_merge.definition._command import CommandDefinition
    from optuna_merge.definition._definition import (
        PosteriorSettings,
        SearchSettings,
        StudyDefinition,
        check_task_names as check_task_names,
    )
    from optuna_merge.definition._load import load_yaml, read_definition as read_definition
    from optuna_merge.definition._runs import (
        GivenRun,
        Runs as Runs,
        given_runs as given_runs,
        run_hash as run_hash,
    )

_WITH_TORCH = {
    "CommandDefinition": "_command",
    "GivenRun": "_runs",
    "PosteriorSettings": "_definition",
    "Runs": "_runs",
    "SearchSettings": "_definition",
    "StudyDefinition": "_definition",
    "check_task_names": "_definition",
    "given_runs": "_runs",
    "load_yaml": "_load",
    "read_definition": "_load",
    "run_hash": "_runs",
}

__all__ = [
    "TEMPLATES",
    "CommandDefinition",
    "GivenRun",
    "PosteriorSettings",
    "SearchSettings",
    "StudyDefinition",
    "load_yaml",
]

__getattr__ = lazy_names(__name__, _WITH_TORCH)  # the templates need no torch
