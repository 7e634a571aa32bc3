"""What truths are expected at given task weights: the model of previews and truths, acquisition.

Torch is imported when a model is first asked for, and not by a sampler that has too few trials.
"""

from typing import TYPE_CHECKING

from optuna_merge._base.lazy import lazy_names
from optuna_merge.surrogate._aim import Aim
from optuna_merge.surrogate._simplex import raised, startup_design, startup_size, to_simplex
from optuna_merge.surrogate._subset import spread_subset

if TYPE_CHECKING:
    from optuna_merge.surrogate._acquisition import (
        Acquisition,
        Improvement,
        ScoreImprovement,
        TruthImprovement,
        front_improvement,
        improvement,
        model_of,
    )
    from optuna_merge.surrogate._export import export_model
    from optuna_merge.surrogate._front import FrontPoint, estimated_front
    from optuna_merge.surrogate._maximise import maximise
    from optuna_merge.surrogate._of_study import Models as Models, truth_models
    from optuna_merge.surrogate._replay import (
        FinetunedShare,
        MetricCurve,
        Replay,
        Share,
        keeping,
        own_task,
        replay,
        replays,
    )
    from optuna_merge.surrogate._score import ScoreModel
    from optuna_merge.surrogate._truth import TruthModel
    from optuna_merge.surrogate._worth import PreviewWorth

_WITH_TORCH = {
    "_acquisition": "Acquisition Improvement ScoreImprovement TruthImprovement front_improvement "
    "improvement model_of",
    "_export": "export_model",
    "_front": "FrontPoint estimated_front",
    "_maximise": "maximise",
    "_of_study": "Models truth_models",
    "_replay": "FinetunedShare MetricCurve Replay Share keeping own_task replay replays",
    "_score": "ScoreModel",
    "_truth": "TruthModel",
    "_worth": "PreviewWorth",
}

__all__ = [
    "Acquisition",
    "Aim",
    "FinetunedShare",
    "FrontPoint",
    "Improvement",
    "MetricCurve",
    "PreviewWorth",
    "Replay",
    "ScoreImprovement",
    "ScoreModel",
    "Share",
    "TruthImprovement",
    "TruthModel",
    "estimated_front",
    "export_model",
    "front_improvement",
    "improvement",
    "keeping",
    "maximise",
    "model_of",
    "own_task",
    "raised",
    "replay",
    "replays",
    "spread_subset",
    "startup_design",
    "startup_size",
    "to_simplex",
    "truth_models",
]

__getattr__ = lazy_names(
    __name__, {name: module for module, names in _WITH_TORCH.items() for name in names.split()}
)
