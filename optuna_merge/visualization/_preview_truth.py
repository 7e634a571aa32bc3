"""How true the previews are: each truth against its preview."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import optuna

from optuna_merge.calibration import calibrate, study_pairs
from optuna_merge.outcomes import study_outcomes
from optuna_merge.trials import task_names

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Line:
    """truth = offset + slope * preview, with the interval of the slope."""

    offset: float
    slope: float
    low: float
    high: float


def fitted_lines(study: optuna.Study) -> dict[str | None, Line]:
    """Least-squares lines of a study's truths over its previews: of the score, None, and by task.

    Those with too few truths are left out.
    """
    lines = {}
    for quantity, (previews, truths) in study_pairs(study, task_names(study)).items():
        slope = calibrate(previews, truths).slope
        if slope is not None:
            offset = float(np.mean(truths) - slope.value * np.mean(previews))
            lines[quantity] = Line(offset, slope.value, slope.low, slope.high)
    return lines


def plot_preview_truth(study: optuna.Study, task: str | None = None) -> go.Figure:
    """Scatter of truths against previews, one point per finetuned trial, with the fitted line.

    Args:
        study: A study of `optuna_merge`.
        task: A task's name, for its metric; default: the score.

    Returns:
        A plotly figure; baselines are marked and named, the line of equality is dashed. The line
        through the points that `diagnose` judges the previews by is the least-squares fit, once
        there are five of them.

    Raises:
        ImportError: plotly is missing; `pip install optuna-merge[dashboard]` brings it.
        ValueError: no finetuned trial has that task's metric; no task, but a study of several
            objectives, which has no score.
    """
    import plotly.graph_objects as go

    if task is None and len(study.directions) > 1:
        raise ValueError(f"study {study.study_name!r} has several objectives; name a task")
    names = task_names(study)
    points: dict[bool, list[tuple[float, float, str]]] = {False: [], True: []}
    for outcome in study_outcomes(study) if names and task in (None, *names) else []:
        preview, truth = outcome.seen(task), outcome.found(task)
        if preview is not None and truth is not None:
            label = f"trial {outcome.trial} {outcome.baseline or ''}".strip()
            points[outcome.kind == "baseline"].append((preview, truth, label))
    both = points[False] + points[True]
    if not both:
        raise ValueError(f"no finetuned trial with preview and truth of {task or 'the score'} yet")
    ends = [min(min(p, t) for p, t, _ in both), max(max(p, t) for p, t, _ in both)]
    figure = go.Figure(
        go.Scatter(x=ends, y=ends, mode="lines", line={"dash": "dash"}, name="preview = truth")
    )
    for is_baseline, name in ((False, "promoted"), (True, "baselines")):
        x, y, text = zip(*points[is_baseline]) if points[is_baseline] else ((), (), ())
        figure.add_trace(go.Scatter(x=x, y=y, text=text, mode="markers", name=name))
    what = "score" if task is None else f"metric of {task}"
    fit = fitted_lines(study).get(task)
    if fit is not None:
        span = [min(p for p, _, _ in both), max(p for p, _, _ in both)]
        heights = [fit.offset + fit.slope * p for p in span]
        name = f"fit: slope {fit.slope:.2f}"
        figure.add_trace(
            go.Scatter(x=span, y=heights, mode="lines", line={"dash": "dot"}, name=name)
        )
    return figure.update_layout(
        title=f"Previews and truths: {what}", xaxis_title="preview", yaxis_title="truth"
    )
