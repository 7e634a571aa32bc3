"""Previews: what a merge is worth, without training or refined by a few steps."""

from optuna_merge.previews._anchor import Anchor, anchor_share
from optuna_merge.previews._heads import HeadSolver, settled
from optuna_merge.previews._previewer import Preview, Previewer
from optuna_merge.previews._refiner import refinement_settings, weighted_loss as weighted_loss
from optuna_merge.previews._settings import PreviewSettings

__all__ = [
    "Anchor",
    "HeadSolver",
    "Preview",
    "PreviewSettings",
    "Previewer",
    "anchor_share",
    "refinement_settings",
    "settled",
]
