"""How far previews can be trusted: what the truths so far say about them."""

from __future__ import annotations

from optuna_merge.calibration._calibrate import Calibration, Verdict, calibrate
from optuna_merge.calibration._estimates import (
    MIN_TRUTHS,
    Estimate,
    rank_correlation,
    rank_correlations,
)
from optuna_merge.calibration._study import (
    StudyCalibration,
    format_calibration,
    score_pairs,
    study_calibration,
)

__all__ = [
    "MIN_TRUTHS",
    "Calibration",
    "Estimate",
    "StudyCalibration",
    "Verdict",
    "calibrate",
    "format_calibration",
    "rank_correlation",
    "rank_correlations",
    "score_pairs",
    "study_calibration",
]
