"""Plots of a study, with plotly, as Optuna's own."""

from optuna_merge.visualization._front import plot_front
from optuna_merge.visualization._preview_truth import plot_preview_truth

__all__ = ["plot_front", "plot_preview_truth"]
