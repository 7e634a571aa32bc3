"""How far previews can be trusted: what the truths so far say about them."""

from optuna_merge.calibration._calibrate import Calibration, Verdict, calibrate
from optuna_merge.calibration._estimates import MIN_TRUTHS, Estimate, rank_correlation
from optuna_merge.calibration._gain import (
    EVIDENT,
    GainEstimate,
    estimated_gain,
    shrunken_difference,
)
from optuna_merge.calibration._noise import PRIOR_FREEDOM, PRIOR_SHARE, Noise, finetune_noise
from optuna_merge.calibration._study import (
    StudyCalibration,
    format_calibration,
    score_pairs,
    study_calibration,
)

__all__ = [
    "EVIDENT",
    "MIN_TRUTHS",
    "PRIOR_FREEDOM",
    "PRIOR_SHARE",
    "Calibration",
    "Estimate",
    "GainEstimate",
    "Noise",
    "StudyCalibration",
    "Verdict",
    "calibrate",
    "estimated_gain",
    "finetune_noise",
    "format_calibration",
    "rank_correlation",
    "score_pairs",
    "shrunken_difference",
    "study_calibration",
]
