"""What truths are expected at given task weights: the model of previews and truths, acquisition.

Torch is imported when a model is first asked for, and not by a sampler that has too few trials.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna_merge._base.lazy import lazy_names
from optuna_merge.surrogate._simplex import raised, startup_design, startup_size, to_simplex
from optuna_merge.surrogate._subset import spread_subset

if TYPE_CHECKING:
    from optuna_merge.surrogate._acquisition import (
        Acquisition,
        Improvement,
        ScoreImprovement,
        TruthImprovement,
        front_improvement,
    )
    from optuna_merge.surrogate._export import export_model
    from optuna_merge.surrogate._front import FrontPoint, estimated_front
    from optuna_merge.surrogate._maximise import maximise
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
    "Acquisition": "_acquisition",
    "FinetunedShare": "_replay",
    "FrontPoint": "_front",
    "Improvement": "_acquisition",
    "MetricCurve": "_replay",
    "PreviewWorth": "_worth",
    "Replay": "_replay",
    "ScoreImprovement": "_acquisition",
    "ScoreModel": "_score",
    "Share": "_replay",
    "TruthImprovement": "_acquisition",
    "TruthModel": "_truth",
    "estimated_front": "_front",
    "export_model": "_export",
    "front_improvement": "_acquisition",
    "keeping": "_replay",
    "maximise": "_maximise",
    "own_task": "_replay",
    "replay": "_replay",
    "replays": "_replay",
}

__all__ = [
    "Acquisition",
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
    "keeping",
    "maximise",
    "own_task",
    "raised",
    "replay",
    "replays",
    "spread_subset",
    "startup_design",
    "startup_size",
    "to_simplex",
]

__getattr__ = lazy_names(__name__, _WITH_TORCH)
