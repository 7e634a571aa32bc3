"""Maps of the task weights: where the previews and the truths are good."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna

from optuna_merge.trials import Outcome, read_study
from optuna_merge.visualization._marks import check_quantity

if TYPE_CHECKING:
    import plotly.graph_objects as go

_COLOURS, _MINIMISED = "Viridis", "Viridis_r"  # the brightest is the best
_BINS = 8  # of values, a colour each, where weightings are lines

Points = list[tuple[Outcome, float]]


def plot_task_weights(
    study: optuna.Study, task: str | None = None, *, max_points: int = 1000
) -> go.Figure:
    """Map of all previewed task weights, and one of the finetuned ones.

    Of three tasks it is a pair of triangles, otherwise a pair of parallel coordinates, a line per
    weighting.

    Args:
        study: A study of `optuna_merge`.
        task: A task's name, for its metric; default: the score.
        max_points: Of more previews, or truths, so many are drawn, evenly among their values.

    Returns:
        Colours are previews on the left and truths on the right, each with a scale of its own.
        The brightest are the best, also of what is minimised, and are drawn over the others.

    Raises:
        ImportError: plotly is missing; `pip install optuna-merge[dashboard]` brings it.
        ValueError: nothing is previewed yet; no such task; no task, but a study of several
            objectives, which has no score.
    """
    from plotly.subplots import make_subplots

    what = check_quantity(study, task)
    findings = read_study(study)
    names, outcomes = findings.tasks, findings.outcomes
    upwards = findings.maximize[task]
    seen = [(o, v) for o in outcomes if o.previewed and (v := o.seen(task)) is not None]
    found = [(o, v) for o in outcomes if (v := o.found(task)) is not None]
    if not seen:
        raise ValueError(f"study {study.study_name!r} has no preview of {task or 'the score'} yet")
    three = len(names) == 3
    kind = {"type": "ternary" if three else "xy"}
    figure = make_subplots(
        cols=2,
        specs=[[kind, kind]],
        subplot_titles=(f"{len(seen)} previews", f"{len(found)} truths"),
        horizontal_spacing=0.2 if three else 0.1,
    )
    make = _triangle if three else _lines
    for column, points in enumerate((seen, found)):
        drawn = _thinned(points, max_points)[:: 1 if upwards else -1]
        figure.add_traces(make(names, drawn, column, upwards), rows=1, cols=column + 1)
    if three:
        axes = {f"{axis}axis": {"title": name, "min": 0} for axis, name in zip("abc", names)}
        figure.update_layout(ternary=axes | {"sum": 1}, ternary2=axes | {"sum": 1})
        figure.update_annotations(yshift=24)
    else:
        figure.update_xaxes(tickvals=list(range(len(names))), ticktext=list(names))
        figure.update_yaxes(range=[0, 1])
    lower = "" if upwards else " (lower is better)"
    return figure.update_layout(title=f"Task weights: {what}{lower}", showlegend=False)


def _thinned(points: Points, n: int) -> Points:
    """At most `n` of them, by rising value, the largest and the smallest among them."""
    ordered = sorted(points, key=lambda point: point[1])
    if len(ordered) <= n:
        return ordered
    return [ordered[i] for i in np.linspace(0, len(ordered) - 1, n).round().astype(int)]


def _bar(column: int) -> dict[str, Any]:
    place = {"x": 0.2 + 0.6 * column, "y": -0.2, "yanchor": "top"}
    return {"orientation": "h", "thickness": 10, "len": 0.4, **place}


def _triangle(names: Sequence[str], points: Points, column: int, upwards: bool) -> list[Any]:
    import plotly.graph_objects as go

    marker = {
        "color": [value for _, value in points],
        "colorscale": _COLOURS if upwards else _MINIMISED,
        "size": 7 if column == 0 else 10,
        "symbol": ["star" if o.kind == "baseline" else "circle" for o, _ in points],
        "colorbar": _bar(column),
    }
    trace = go.Scatterternary(
        {axis: [o.weights[name] for o, _ in points] for axis, name in zip("abc", names)},
        mode="markers",
        marker=marker,
        cliponaxis=False,
        text=[o.label for o, _ in points],
        hovertemplate="%{text}<br>%{marker.color:.4f}<br>%{a:.3f}, %{b:.3f}, %{c:.3f}",
        name=("previews", "truths")[column],
    )
    return [trace]


def _lines(names: Sequence[str], points: Points, column: int, upwards: bool) -> list[Any]:
    """A trace per bin of values; Plotly's own parallel coordinates need WebGL."""
    import plotly.graph_objects as go
    from plotly.colors import sample_colorscale

    if not points:
        return []
    values = [value for _, value in points]
    low, high = min(values), max(values)
    width = (high - low) / _BINS or 1.0
    bins: list[list[Outcome]] = [[] for _ in range(_BINS)]
    for outcome, value in points:
        bins[min(int((value - low) / width), _BINS - 1)].append(outcome)
    colours = _COLOURS if upwards else _MINIMISED
    scale = {"color": [low], "cmin": low, "cmax": high, "colorscale": colours}
    bar = {"marker": scale | {"showscale": True, "colorbar": _bar(column)}}
    traces: list[Any] = [go.Scatter(x=[None], y=[None], mode="markers", hoverinfo="skip", **bar)]
    for i in range(_BINS) if upwards else reversed(range(_BINS)):
        outcomes = bins[i]
        y = [w for o in outcomes for w in (*(o.weights[name] for name in names), None)]
        x = [*range(len(names)), None] * len(outcomes)
        (colour,) = sample_colorscale(colours, [(i + 0.5) / _BINS])
        label = f"{low + i * width:.4g} to {low + (i + 1) * width:.4g}"
        line = {"color": colour, "width": 1}
        traces.append(go.Scatter(x=x, y=y, mode="lines", line=line, opacity=0.6, name=label))
    return traces
