"""Maps of the task weights: where the previews and the truths are good."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import optuna

from optuna_merge.outcomes import Outcome, check_quantity, study_outcomes
from optuna_merge.study import task_names

if TYPE_CHECKING:
    import plotly.graph_objects as go

_COLOURS = "Viridis"


def plot_task_weights(study: optuna.Study, task: str | None = None) -> go.Figure:
    """Map of all previewed task weights, and one of the finetuned ones.

    Of three tasks it is a pair of triangles, otherwise a pair of parallel coordinates, a line per
    weighting.

    Args:
        study: A study of `optuna_merge`.
        task: A task's name, for its metric; default: the score.

    Returns:
        A plotly figure; colours are previews on the left (above) and truths on the right (below),
        each with a scale of its own, as previews may be biased.

    Raises:
        ImportError: plotly is missing; `pip install optuna-merge[dashboard]` brings it.
        ValueError: nothing is previewed yet; no such task; no task, but a study of several
            objectives, which has no score.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    what = check_quantity(study, task)
    names = task_names(study)
    outcomes = study_outcomes(study)
    seen = [(o, v) for o in outcomes if (v := o.seen(task)) is not None]
    found = [(o, v) for o in outcomes if (v := o.found(task)) is not None]
    if not seen:
        raise ValueError(f"study {study.study_name!r} has no preview of {task or 'the score'} yet")
    titles = (f"{len(seen)} previews", f"{len(found)} truths")
    three = len(names) == 3
    kind = {"type": "ternary" if three else "domain"}
    figure = make_subplots(
        rows=1 if three else 2,
        cols=2 if three else 1,
        specs=[[kind, kind]] if three else [[kind], [kind]],
        subplot_titles=titles,
        horizontal_spacing=0.2,
    )
    for i, points in enumerate((seen, found)):
        place = {"row": 1, "col": i + 1} if three else {"row": i + 1, "col": 1}
        if not points:
            continue
        trace = _triangle(go, names, points, i) if three else _lines(go, names, points, what)
        figure.add_trace(trace, **place)
    if three:
        axes = {f"{axis}axis": {"title": name, "min": 0} for axis, name in zip("abc", names)}
        figure.update_layout(ternary=axes | {"sum": 1}, ternary2=axes | {"sum": 1})
    figure.update_annotations(yshift=24)
    return figure.update_layout(title=f"Task weights: {what}", showlegend=False)


def _triangle(
    go: Any, names: Sequence[str], points: Sequence[tuple[Outcome, float]], column: int
) -> Any:
    a, b, c = ([o.weights[name] for o, _ in points] for name in names)
    return go.Scatterternary(
        a=a,
        b=b,
        c=c,
        mode="markers",
        marker={
            "color": [value for _, value in points],
            "colorscale": _COLOURS,
            "size": 7 if column == 0 else 10,
            "symbol": ["star" if o.kind == "baseline" else "circle" for o, _ in points],
            "colorbar": {
                "orientation": "h",
                "x": 0.2 + 0.6 * column,
                "y": -0.2,
                "thickness": 10,
                "len": 0.4,
            },
        },
        cliponaxis=False,
        text=[f"trial {o.trial} {o.baseline or ''}".strip() for o, _ in points],
        hovertemplate="%{text}<br>%{marker.color:.4f}<br>%{a:.3f}, %{b:.3f}, %{c:.3f}",
        name=("previews", "truths")[column],
    )


def _lines(
    go: Any, names: Sequence[str], points: Sequence[tuple[Outcome, float]], what: str
) -> Any:
    values = [value for _, value in points]
    weights = [
        {"label": name, "range": [0, 1], "values": [o.weights[name] for o, _ in points]}
        for name in names
    ]
    return go.Parcoords(
        line={"color": values, "colorscale": _COLOURS},
        dimensions=[*weights, {"label": what, "values": values}],
    )
