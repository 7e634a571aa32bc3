"""What the search cost, and what it had found by then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import optuna
from optuna.study import StudyDirection

from optuna_merge.goals import hypervolume
from optuna_merge.outcomes import Outcome, study_outcomes, task_run_steps
from optuna_merge.trials import reference_point, task_names

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class CostPoint:
    """A finetune, in the order in which they ended.

    Attributes:
        outcome: What was finetuned.
        steps: Training steps of the study by then, the tasks' own finetunes included.
        value: Its truth; None with several objectives.
        best: The best truth by then that satisfies the constraints (None before there is one);
            with several objectives the hypervolume of all of them.
    """

    outcome: Outcome
    steps: int
    value: float | None
    best: float | None


def cost_curve(study: optuna.Study, outcomes: Sequence[Outcome]) -> list[CostPoint]:
    """The truths in the order in which they ended, with the steps that were spent by then.

    Raises:
        ValueError: several objectives, but no reference point in the study.
    """
    names = task_names(study)
    several = len(study.directions) > 1
    signs = np.array([1.0 if d == StudyDirection.MAXIMIZE else -1.0 for d in study.directions])
    corner = reference_point(study, names) if several else None
    if several and corner is None:
        raise ValueError(
            f"study {study.study_name!r} has several objectives, but no reference point to "
            f"measure hypervolumes from (the attribute reference_point)"
        )
    ended = [(o.ended, o.trial, o) for o in outcomes if o.ended is not None]
    steps, best = task_run_steps(study), None
    front: list[list[float]] = []
    curve = []
    for _, _, outcome in sorted(ended, key=lambda e: e[:2]):
        steps += outcome.steps
        if not outcome.is_truth:
            continue
        if corner is not None:
            metrics = [outcome.truths[name] for name in names]
            if outcome.feasible and None not in metrics:
                front.append([m for m in metrics if m is not None])
                best = hypervolume(signs * np.array(front), signs * corner)
        elif outcome.feasible and outcome.truth is not None:
            value = outcome.truth
            if best is None or signs[0] * value > signs[0] * best:
                best = value
        curve.append(CostPoint(outcome, steps, outcome.truth, best))
    return curve


def plot_cost(study: optuna.Study) -> go.Figure:
    """The best truth so far against the training steps so far.

    Steps are those of the tasks' own finetunes, of refined previews and of all finetunes, given up
    ones too; previews cost none. With several objectives the line is the hypervolume.

    Args:
        study: A study of `optuna_merge`.

    Returns:
        A plotly figure.

    Raises:
        ImportError: plotly is missing; `pip install optuna-merge[dashboard]` brings it.
        ValueError: nothing is finetuned yet.
    """
    import plotly.graph_objects as go

    curve = cost_curve(study, study_outcomes(study))
    if not curve:
        raise ValueError(f"study {study.study_name!r} has no finetuned trial yet")
    best = [p for p in curve if p.best is not None]
    what = "best truth so far" if len(study.directions) == 1 else "hypervolume so far"
    figure = go.Figure(
        go.Scatter(
            x=[p.steps for p in best],
            y=[p.best for p in best],
            mode="lines",
            line={"shape": "hv"},
            name=what,
        )
    )
    for kind, name in (("promoted", "promoted"), ("baseline", "baselines")):
        points = [p for p in curve if p.outcome.kind == kind and p.value is not None]
        figure.add_trace(
            go.Scatter(
                x=[p.steps for p in points],
                y=[p.value for p in points],
                text=[
                    f"trial {p.outcome.trial} {p.outcome.baseline or ''}".strip() for p in points
                ],
                mode="markers",
                name=name,
            )
        )
    return figure.update_layout(
        title="Cost and what was found",
        xaxis={"title": "training steps so far", "rangemode": "tozero"},
        yaxis_title="truth" if len(study.directions) == 1 else what,
    )
