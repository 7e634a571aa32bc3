"""Previews: what a merge is worth, without training or refined by a few steps."""

from optuna_merge.previews._heads import HeadSolver, settled
from optuna_merge.previews._previewer import Preview, Previewer
from optuna_merge.previews._racing import (
    PartialPreview,
    Racing,
    RacingPreviewer,
    racing_obstacle,
)
from optuna_merge.previews._refiner import Choice, RefinementSettings, Refiner, choose_rate
from optuna_merge.previews._settings import PreviewSettings

__all__ = [
    "Choice",
    "HeadSolver",
    "PartialPreview",
    "Preview",
    "PreviewSettings",
    "Previewer",
    "Racing",
    "RacingPreviewer",
    "RefinementSettings",
    "Refiner",
    "choose_rate",
    "racing_obstacle",
    "settled",
]
