"""The best task weights beside uniform ones and each task alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import optuna

from optuna_merge.trials import UNIFORM, Findings, read_study

if TYPE_CHECKING:
    import plotly.graph_objects as go


def compared_metrics(findings: Findings) -> dict[str, dict[str, float | None]]:
    """True metrics by task of "best", "uniform" and "alone", of those that there are.

    "alone" has each task's metric in its own finetune.
    """
    shown = {"best": findings.best, UNIFORM: findings.uniform}
    bars = {name: dict(of.truths) for name, of in shown.items() if of is not None}
    if UNIFORM not in findings.tasks:
        bars["alone"] = {name: of.truths[name] for name, of in findings.alone.items()}
    return {name: row for name, row in bars.items() if any(v is not None for v in row.values())}


def plot_baselines(study: optuna.Study) -> go.Figure:
    """Bars of each task's true metric: best weights, uniform weights, the task alone.

    Args:
        study: A study of `optuna_merge`; one of several objectives has no best weights.

    Raises:
        ImportError: plotly is missing; `pip install optuna-merge[dashboard]` brings it.
        ValueError: nothing is finetuned yet.
    """
    import plotly.graph_objects as go

    findings = read_study(study)
    bars = compared_metrics(findings)
    if not bars:
        raise ValueError(f"study {study.study_name!r} has no finetuned trial yet")
    names = list(findings.tasks)
    traces = [go.Bar(x=names, y=[row.get(n) for n in names], name=k) for k, row in bars.items()]
    return go.Figure(traces).update_layout(
        title="True metrics by task", yaxis_title="metric on validation data", barmode="group"
    )
