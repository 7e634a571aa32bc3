"""What the search cost, and what it had found by then."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import optuna

from optuna_merge.goals import hypervolume
from optuna_merge.trials import SCORE, Findings, Outcome, read_study
from optuna_merge.visualization._marks import finetune_marks

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class CostPoint:
    """A finetune, in the order in which they ended.

    Attributes:
        outcome: What was finetuned.
        steps: Training steps of the study by then, the tasks' own finetunes included.
        best: The best truth by then that satisfies the constraints (None before there is one);
            with several objectives the hypervolume of all of them.
    """

    outcome: Outcome
    steps: int
    best: float | None


def dominated_volume(findings: Findings, outcomes: Iterable[Outcome]) -> float | None:
    """Hypervolume of those truths that satisfy the constraints.

    None without the study's attribute `reference_point`, which it is measured from.
    """
    corner = findings.reference_point
    if corner is None:
        return None
    rows = [[o.truths[name] for name in findings.tasks] for o in outcomes if o.feasible]
    points = [row for row in rows if None not in row]
    if not points:
        return 0.0
    signs = np.array([findings.sign(name) for name in findings.tasks])
    return hypervolume(signs * np.array(points), signs * np.array(list(corner.values())))


def cost_curve(findings: Findings) -> list[CostPoint]:
    """The truths in the order in which they ended, with the steps that were spent by then.

    Empty where several objectives have no reference point.
    """
    if findings.several and findings.reference_point is None:
        return []
    ended = [(o.ended, o.trial, o) for o in findings.outcomes if o.ended is not None]
    steps, best = findings.task_run_steps, None
    seen: list[Outcome] = []
    curve = []
    for _, _, outcome in sorted(ended, key=lambda e: e[:2]):
        steps += outcome.steps
        if not outcome.is_truth:
            continue
        if outcome.feasible:
            seen.append(outcome)
            if findings.several:
                best = dominated_volume(findings, seen)
            else:
                scores = (o.truth for o in seen if o.truth is not None)
                best = max(scores, key=lambda score: findings.sign(SCORE) * score, default=None)
        curve.append(CostPoint(outcome, steps, best))
    return curve


def plot_cost(study: optuna.Study) -> go.Figure:
    """The best truth so far against the training steps so far.

    Steps are those of the tasks' own finetunes and of all finetunes, given up ones too; previews
    cost none. With several objectives the line is the hypervolume.

    Raises:
        ImportError: plotly is missing; `pip install optuna-merge[dashboard]` brings it.
        ValueError: nothing is finetuned yet; several objectives, but no reference point.
    """
    import plotly.graph_objects as go

    findings = read_study(study)
    curve = cost_curve(findings)
    if not curve:
        raise ValueError(
            f"study {study.study_name!r} has no finetuned trial yet, or several objectives but no "
            f"attribute reference_point to measure hypervolumes from"
        )
    known = [p for p in curve if p.best is not None]
    what = "hypervolume so far" if findings.several else "best truth so far"
    x, y = [p.steps for p in known], [p.best for p in known]
    line = go.Scatter(x=x, y=y, mode="lines", line={"shape": "hv"}, name=what)
    marks = finetune_marks((p.outcome, p.steps, p.outcome.truth, p.outcome.label) for p in curve)
    return go.Figure([line, *marks]).update_layout(
        title="Cost and what was found",
        xaxis={"title": "training steps so far", "rangemode": "tozero"},
        yaxis_title=what if findings.several else "truth",
    )
