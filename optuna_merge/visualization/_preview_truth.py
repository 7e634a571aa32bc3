"""How true the previews are: each truth against its preview."""

from __future__ import annotations

from typing import TYPE_CHECKING

import optuna

from optuna_merge.calibration import study_calibration
from optuna_merge.trials import read_study
from optuna_merge.visualization._marks import check_quantity, finetune_marks

if TYPE_CHECKING:
    import plotly.graph_objects as go


def plot_preview_truth(study: optuna.Study, task: str | None = None) -> go.Figure:
    """Scatter of truths against previews, one point per finetuned trial, with the fitted line.

    Args:
        study: A study of `optuna_merge`.
        task: A task's name, for its metric; default: the score.

    Returns:
        Baselines are marked and named, the line of equality is dashed, and dotted the
        least-squares fit of the points that `diagnose` judges the previews by, once there are
        five of them.

    Raises:
        ImportError: plotly is missing; `pip install optuna-merge[dashboard]` brings it.
        ValueError: no finetuned trial has that task's metric; no such task; no task, but a study
            of several objectives, which has no score.
    """
    import plotly.graph_objects as go

    what = check_quantity(study, task)
    findings = read_study(study)
    points = [(o, o.seen(task), o.found(task), o.label) for o in findings.truths]
    known = [(p, t) for _, p, t, _ in points if p is not None and t is not None]
    if not known:
        raise ValueError(f"no finetuned trial with preview and truth of {task or 'the score'} yet")
    ends = [min(map(min, known)), max(map(max, known))]
    equal = go.Scatter(x=ends, y=ends, mode="lines", line={"dash": "dash"}, name="preview = truth")
    figure = go.Figure([equal, *finetune_marks(points)])
    calibration = study_calibration(study, findings.tasks)
    judged = calibration.score if task is None else calibration.tasks[task]
    if judged is not None and judged.slope is not None and judged.offset is not None:
        slope = judged.slope.value
        span = [min(p for p, _ in known), max(p for p, _ in known)]
        fit = [judged.offset + slope * p for p in span]
        name = f"fit: slope {slope:.2f}"
        figure.add_scatter(x=span, y=fit, mode="lines", line={"dash": "dot"}, name=name)
    return figure.update_layout(
        title=f"Previews and truths: {what}", xaxis_title="preview", yaxis_title="truth"
    )
