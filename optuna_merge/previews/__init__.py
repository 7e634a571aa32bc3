"""Previews: what a merge is worth, without training."""

from optuna_merge.previews._previewer import Preview, Previewer
from optuna_merge.previews._racing import (
    PartialPreview,
    Racing,
    RacingPreviewer,
    racing_obstacle,
)

__all__ = [
    "PartialPreview",
    "Preview",
    "Previewer",
    "Racing",
    "RacingPreviewer",
    "racing_obstacle",
]
