"""Previews: what a merge is worth, without training."""

from optuna_merge.previews._previewer import Preview, Previewer
from optuna_merge.previews._settings import PreviewSettings

__all__ = ["Preview", "PreviewSettings", "Previewer"]
