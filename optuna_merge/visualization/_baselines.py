"""The best task weights beside uniform ones and each task alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import optuna

from optuna_merge.trials import UNIFORM, Findings, Outcome, read_study

if TYPE_CHECKING:
    import plotly.graph_objects as go


def compared_metrics(
    findings: Findings, best: Outcome | None
) -> dict[str, dict[str, float | None]]:
    """True metrics by task of "best", "uniform" and "alone", of those that there are.

    "alone" has each task's metric in its own finetune.
    """
    shown = {"best": best, UNIFORM: findings.uniform}
    bars = {name: dict(of.truths) for name, of in shown.items() if of is not None}
    if UNIFORM not in findings.tasks:
        bars["alone"] = {name: of.truths[name] for name, of in findings.alone.items()}
    return {name: row for name, row in bars.items() if any(v is not None for v in row.values())}


def plot_baselines(study: optuna.Study, trial: int | None = None) -> go.Figure:
    """Bars of each task's true metric: best weights, uniform weights, the task alone.

    Args:
        study: A study of `optuna_merge`.
        trial: Number of a finetuned trial to show in the place of the best one; needed in a study
            of several objectives, which has no best one.

    Returns:
        A plotly figure.

    Raises:
        ImportError: plotly is missing; `pip install optuna-merge[dashboard]` brings it.
        ValueError: nothing is finetuned yet, or not that trial; no trial, but several objectives.
    """
    import plotly.graph_objects as go

    findings = read_study(study)
    shown = findings.best
    if trial is not None:
        shown = next((o for o in findings.truths if o.trial == trial), None)
        if shown is None:
            raise ValueError(f"trial {trial} of study {study.study_name!r} is not finetuned")
    elif findings.several:
        raise ValueError(
            f"study {study.study_name!r} has several objectives; name a trial, such as one "
            f"of {[o.trial for o in findings.front]}"
        )
    bars = compared_metrics(findings, shown)
    if not bars:
        raise ValueError(f"study {study.study_name!r} has no finetuned trial yet")
    label = "best" if trial is None else f"trial {trial}"
    names = list(findings.tasks)
    traces = [
        go.Bar(x=names, y=[row.get(n) for n in names], name=label if name == "best" else name)
        for name, row in bars.items()
    ]
    return go.Figure(traces).update_layout(
        title="True metrics by task", yaxis_title="metric on validation data", barmode="group"
    )
