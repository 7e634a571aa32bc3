"""Plots of a study, with plotly, as Optuna's own, and the numbers that they draw."""

from optuna_merge.visualization._baselines import compared_metrics, plot_baselines
from optuna_merge.visualization._cost import CostPoint, cost_curve, dominated_volume, plot_cost
from optuna_merge.visualization._front import plot_front
from optuna_merge.visualization._preview_truth import plot_preview_truth
from optuna_merge.visualization._task_weights import plot_task_weights

__all__ = [
    "CostPoint",
    "compared_metrics",
    "cost_curve",
    "dominated_volume",
    "plot_baselines",
    "plot_cost",
    "plot_front",
    "plot_preview_truth",
    "plot_task_weights",
]
