"""What the page's scripts draw, as JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna_merge.reports._page_shares import shares, short
from optuna_merge.reports._reading import Json, Reading
from optuna_merge.surrogate import estimated_front, export_model
from optuna_merge.trials import SCORE, Outcome
from optuna_merge.visualization import compared_metrics, cost_curve

_FRONT_POINTS = 500
_MAX_FRONT = 60
_MAX_POINTS = 2000  # weightings that are drawn


def page_data(reading: Reading, report: Mapping[str, Any] | None) -> Json:
    """Of "quantities" the score is the first (null in a Pareto study), then come the tasks."""
    findings = reading.findings
    names, best = findings.tasks, findings.best
    quantities = (SCORE, *names)
    bars = compared_metrics(findings)
    calibrations = dict(reading.judged)
    models = [reading.models.get(q) for q in quantities]
    noise = [reading.noise.get(q) for q in quantities]
    lines = [calibrations.get(q) for q in quantities]
    return {
        "tasks": names,
        "score": reading.score,
        "maximize": [findings.maximize.get(q, True) for q in quantities],
        "points": [_point(o, quantities) for o in _drawn(findings.outcomes)],
        "n_previews": findings.counts.previews,
        "best": None if best is None else best.trial,
        "lines": [
            None
            if of is None or of.slope is None
            else [of.offset, of.slope.value, of.slope.low, of.slope.high]
            for of in lines
        ],
        "curve": [
            [p.steps, short(p.outcome.truth), short(p.best), p.outcome.trial, p.outcome.kind]
            for p in cost_curve(findings)
        ],
        "curve_of": reading.curve_of,
        "front": _front(reading),
        "bars": {name: [short(row.get(task)) for task in names] for name, row in bars.items()},
        "limits": _limits(names, report),
        "shares": shares(reading),
        "models": [None if model is None else export_model(model) for model in models],
        "noise": [None if of is None else [short(of.std), of.told] for of in noise],
    }


def _drawn(outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
    """All truths, and of very many previews every other one, every third one, ..."""
    stride = -(-len(outcomes) // _MAX_POINTS)
    return [o for i, o in enumerate(outcomes) if o.is_truth or i % stride == 0]


def _point(outcome: Outcome, quantities: Sequence[str | None]) -> list[Any]:
    weights = [short(weight) for weight in outcome.weights.values()]
    seen, found = ([short(of(q)) for q in quantities] for of in (outcome.seen, outcome.found))
    what = [outcome.trial, outcome.kind, outcome.name]
    return [*what, weights, seen, found, outcome.feasible, outcome.at_anchor, outcome.previewed]


def _front(reading: Reading) -> list[Any]:
    """Weights, expected metrics and their standard deviations, by task."""
    if len(reading.findings.tasks) < 2:
        return []
    try:
        front = estimated_front(reading.study, n_points=_FRONT_POINTS, max_points=_MAX_FRONT)
    except ValueError:  # a task without any metrics
        return []
    return [[[short(v) for v in of.values()] for of in (p.weights, p.mean, p.std)] for p in front]


def _limits(names: Sequence[str], report: Mapping[str, Any] | None) -> list[list[Any]]:
    """Of each constraint the task's index, "at_least" or "at_most", and the bound."""
    if report is None or report["constraints"] is None:
        return []
    return [
        [names.index(limit["task"]), sense, short(limit[sense])]
        for limit in report["constraints"]["limits"].values()
        for sense in limit.keys() & {"at_least", "at_most"}
    ]
