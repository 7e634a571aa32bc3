"""Task weights for multitask finetuning, found through Bayesian model-merging previews.

Importing the package is cheap: torch and transformers are loaded when a name that needs them is
first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna_merge._base.lazy import lazy_names
from optuna_merge._version import __version__

if TYPE_CHECKING:
    from optuna_merge.definition import PosteriorSettings, StudyDefinition
    from optuna_merge.exporting import export_model
    from optuna_merge.finetuning import FinetuneSettings
    from optuna_merge.fitting import FittedStudy, fit
    from optuna_merge.goals import Constraint, Score
    from optuna_merge.objective import Objective
    from optuna_merge.previews import PreviewSettings
    from optuna_merge.pruners import PromotionPruner
    from optuna_merge.reports import format_report, make_report
    from optuna_merge.samplers import PreviewSampler
    from optuna_merge.search import open_search, open_study, prepare_study
    from optuna_merge.storages import create_storage
    from optuna_merge.tasks import Task
    from optuna_merge.trainers import from_command, from_trainer
    from optuna_merge.workers import run_trials

_PUBLIC = {
    "definition": "PosteriorSettings StudyDefinition",
    "exporting": "export_model",
    "finetuning": "FinetuneSettings",
    "fitting": "FittedStudy fit",
    "goals": "Constraint Score",
    "objective": "Objective",
    "previews": "PreviewSettings",
    "pruners": "PromotionPruner",
    "reports": "format_report make_report",
    "samplers": "PreviewSampler",
    "search": "open_search open_study prepare_study",
    "storages": "create_storage",
    "tasks": "Task",
    "trainers": "from_command from_trainer",
    "workers": "run_trials",
}

__all__ = [
    "Constraint",
    "FinetuneSettings",
    "FittedStudy",
    "Objective",
    "PosteriorSettings",
    "PreviewSampler",
    "PreviewSettings",
    "PromotionPruner",
    "Score",
    "StudyDefinition",
    "Task",
    "__version__",
    "create_storage",
    "export_model",
    "fit",
    "format_report",
    "from_command",
    "from_trainer",
    "make_report",
    "open_search",
    "open_study",
    "prepare_study",
    "run_trials",
]

__getattr__ = lazy_names(
    __name__, {name: module for module, names in _PUBLIC.items() for name in names.split()}
)
