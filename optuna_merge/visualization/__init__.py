"""Plots of a study, with plotly, as Optuna's own."""

from optuna_merge.visualization._baselines import plot_baselines
from optuna_merge.visualization._cost import plot_cost
from optuna_merge.visualization._front import plot_front
from optuna_merge.visualization._preview_truth import plot_preview_truth
from optuna_merge.visualization._task_weights import plot_task_weights

__all__ = [
    "plot_baselines",
    "plot_cost",
    "plot_front",
    "plot_preview_truth",
    "plot_task_weights",
]
