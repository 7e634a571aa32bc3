"""The best task weights beside uniform ones and each task alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import optuna

from optuna_merge.outcomes import Findings, Outcome, read_study
from optuna_merge.trials import UNIFORM

if TYPE_CHECKING:
    import plotly.graph_objects as go

Bars = dict[str, dict[str, float | None]]


def compared_metrics(findings: Findings, best: Outcome | None) -> Bars:
    """True metrics by task of "best", "uniform" and "alone", of those that there are.

    "alone" has each task's metric in its own finetune.
    """
    bars: Bars = {} if best is None else {"best": dict(best.truths)}
    if findings.uniform is not None:
        bars[UNIFORM] = dict(findings.uniform.truths)
    alone = {name: outcome.truths[name] for name, outcome in findings.alone.items()}
    if alone and UNIFORM not in findings.tasks:
        bars["alone"] = alone
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
    if trial is None:
        if len(study.directions) > 1:
            raise ValueError(
                f"study {study.study_name!r} has several objectives; name a trial, such as one "
                f"of {[t.number for t in study.best_trials]}"
            )
        shown, label = findings.best, "best"
    else:
        shown = next((o for o in findings.truths if o.trial == trial), None)
        label = f"trial {trial}"
        if shown is None:
            raise ValueError(f"trial {trial} of study {study.study_name!r} is not finetuned")
    names = findings.tasks
    bars = compared_metrics(findings, shown)
    if not bars:
        raise ValueError(f"study {study.study_name!r} has no finetuned trial yet")
    figure = go.Figure()
    for name, row in bars.items():
        shown_as = label if name == "best" else name
        y = [row.get(task) for task in names]
        figure.add_trace(go.Bar(x=list(names), y=y, name=shown_as))
    return figure.update_layout(
        title="True metrics by task", yaxis_title="metric on validation data", barmode="group"
    )
