"""How much replay: both metrics over the share of the general set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import optuna

from optuna_merge.surrogate import MetricCurve, Replay, replay
from optuna_merge.trials import Findings, read_study
from optuna_merge.visualization._marks import finetune_marks

if TYPE_CHECKING:
    import plotly.graph_objects as go

_LINE, _BAND = "#1f77b4", "rgba(31, 119, 180, 0.2)"
_MARKS = ("#d62728", "#ff7f0e")  # of what was promoted and of baselines, in both pictures


def plot_replay(study: optuna.Study, general: str, keep: float = 0.95) -> go.Figure:
    """The own metric above, the general one below, over the general set's share of the weights.

    Args:
        study: A study of two tasks, own data and a general set.
        general: The general task's name.
        keep: The share of the general metric that must be kept.

    Returns:
        A plotly figure: what is expected of the truth with its 90 % interval (without the noise
        of a finetune), previews, finetunes, the bound of the general metric, the best share.

    Raises:
        ImportError: plotly is missing; `pip install optuna-merge[dashboard]` brings it.
        ValueError: as `optuna_merge.surrogate.replay`.
    """
    from plotly.subplots import make_subplots

    found, findings = replay(study, general, keep), read_study(study)
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.06)
    for row, curve in enumerate((found.own, found.general), 1):
        figure.add_traces(_traces(found, curve, findings, row == 1), rows=row, cols=1)
        lower = "" if curve.greater_is_better else " (lower is better)"
        figure.update_yaxes(title=f"{curve.task}{lower}", row=row, col=1)
    figure.add_hline(y=found.bound, line_dash="dash", row=2, col=1)
    best = ""
    if found.best is not None:
        figure.add_vline(x=found.best.share, line_dash="dot")
        best = f", best share {found.best.share:.2f}"
    figure.update_xaxes(title=f"share of {general} (task weight)", range=[0, 1], row=2, col=1)
    return figure.update_layout(title=f"How much replay? Keep {keep:.0%} of {general}{best}")


def _traces(found: Replay, curve: MetricCurve, findings: Findings, named: bool) -> list[Any]:
    """The curve in its interval, previews and finetunes; with a legend only where `named`."""
    import plotly.graph_objects as go

    general = found.general.task
    band = go.Scatter(
        x=[*found.shares, *found.shares[::-1]],
        y=[*curve.high, *curve.low[::-1]],
        fill="toself",
        fillcolor=_BAND,
        line={"width": 0},
        hoverinfo="skip",
        name="90 % interval of the expected value",
    )
    line = go.Scatter(
        x=found.shares, y=curve.mean, mode="lines", line={"color": _LINE}, name="expected"
    )
    seen = [o for o in findings.outcomes if o.previewed and o.seen(curve.task) is not None]
    previews = go.Scatter(
        x=[o.weights[general] for o in seen],
        y=[o.seen(curve.task) for o in seen],
        mode="markers",
        marker={"symbol": "circle-open", "color": "grey"},
        name="previews",
    )
    truths = findings.truths
    marks = finetune_marks((o, o.weights[general], o.found(curve.task), o.label) for o in truths)
    for mark, colour in zip(marks, _MARKS):
        mark.update(marker={"color": colour})
    traces = [band, line, previews, *marks]
    return [trace.update(showlegend=named) for trace in traces]
