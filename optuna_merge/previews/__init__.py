"""Previews: what a merge is worth, without training."""

from optuna_merge.previews._previewer import Preview, Previewer

__all__ = ["Preview", "Previewer"]
