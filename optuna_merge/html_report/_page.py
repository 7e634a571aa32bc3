"""What the page shows: read from the study, with what only the working folder knows put in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna
from optuna.study import StudyDirection

from optuna_merge.calibration import study_calibration
from optuna_merge.fronts import estimated_front
from optuna_merge.outcomes import (
    Outcome,
    best_outcome,
    study_outcomes,
    task_directions,
    task_run_steps,
)
from optuna_merge.samplers._export import export_model
from optuna_merge.samplers._history import History, Series, TrialReader
from optuna_merge.study import UNIFORM, task_names
from optuna_merge.visualization._baselines import compared_metrics
from optuna_merge.visualization._cost import cost_curve
from optuna_merge.visualization._preview_truth import fitted_lines

Json = dict[str, Any]

_DIGITS = 6  # significant ones of what is drawn
_FRONT_POINTS = 500
_MAX_FRONT = 60
_MAX_POINTS = 2000  # weightings that are drawn


@dataclass(frozen=True)
class Row:
    """A finetune in the table of metrics: its name, weights, and (preview, truth, test) by task.

    `score` is the same triple, all None in a Pareto study; `trial` its number.
    """

    name: str
    trial: int
    weights: Mapping[str, float]
    tasks: Mapping[str, tuple[float | None, float | None, float | None]]
    score: tuple[float | None, float | None, float | None]


@dataclass(frozen=True)
class Page:
    """Everything the template is filled with.

    Attributes:
        title: The study's name.
        tasks: Task names, in order.
        score: The score's name; None in a Pareto study.
        answer: The sentences that come first.
        best: The best finetune; None without one.
        rows: The best finetune and the baselines; of a Pareto study its front and the baselines.
        warnings: What a reader must know before believing the answer.
        costs: (what, training steps or None, seconds or None).
        calibration: Of the score and each task, its name, the numbers and the verdict.
        data: What the scripts draw, as JSON values.
    """

    title: str
    tasks: tuple[str, ...]
    score: str | None
    answer: tuple[str, ...]
    best: Row | None
    rows: tuple[Row, ...]
    warnings: tuple[str, ...]
    costs: tuple[tuple[str, int | None, float | None], ...]
    calibration: tuple[tuple[str, Json], ...]
    data: Json

    @property
    def tested(self) -> bool:
        """Whether any test metric is known."""
        return any(test is not None for row in self.rows for _, _, test in row.tasks.values())


def read_page(
    study: optuna.Study,
    report: Mapping[str, Any] | None = None,
    *,
    maximize: Mapping[str, bool] | None = None,
) -> Page:
    """Read a study for the page.

    Args:
        study: The study.
        report: Of the same study, from `make_report`: it adds test metrics, and what task runs
            and posteriors cost.
        maximize: By task, whether its metric is to be maximised; None: as the study's directions.

    Raises:
        ValueError: no trial has task weights yet.
    """
    names = task_names(study)
    outcomes = study_outcomes(study)
    several = len(study.directions) > 1
    upwards = task_directions(study, names, maximize)
    best = best_outcome(study, outcomes)
    rows = _rows(study, outcomes, best, _tested(report))
    calibration = study_calibration(study, names).as_json()
    judged = [] if several else [("score", calibration["score"])]
    judged += [
        (f"score after {step} steps from the merge", found)
        for step, found in calibration["refined"].items()
    ]
    judged += calibration["tasks"].items()
    metric_names = study.metric_names
    score = None if several else metric_names[0] if metric_names else "score"
    return Page(
        title=study.study_name,
        tasks=names,
        score=score,
        answer=tuple(_answer(study, names, rows, outcomes, upwards, report)),
        best=next((row for row in rows if best is not None and row.trial == best.trial), None),
        rows=tuple(rows),
        warnings=tuple(_warnings(study, rows, outcomes, calibration["score"], report)),
        costs=tuple(_costs(study, outcomes, report)),
        calibration=tuple(judged),
        data={
            "tasks": list(names),
            "score": score,
            "maximize": {"score": study.directions[0] == StudyDirection.MAXIMIZE}
            | {f"task {i}": upwards[name] for i, name in enumerate(names)},
            "points": [_point(o, names) for o in _drawn(outcomes)],
            "n_previews": len(outcomes),
            "lines": _lines(study, names),
            "curve": _curve(study, outcomes),
            "curve_of": "hypervolume" if several else "best truth",
            "front": _front(study, names, upwards),
            "bars": {
                name: [_short(metrics.get(task)) for task in names]
                for name, metrics in compared_metrics(names, outcomes, best).items()
            },
            "limits": _limits(names, report),
            "models": _models(study, names, upwards, several),
        },
    )


def _rows(
    study: optuna.Study,
    outcomes: Sequence[Outcome],
    best: Outcome | None,
    tested: Mapping[int, Mapping[str, Any]],
) -> list[Row]:
    def row(name: str, outcome: Outcome) -> Row:
        found = tested.get(outcome.trial, {})
        tasks, score = found.get("tasks", {}), found.get("score", {})
        return Row(
            name,
            outcome.trial,
            outcome.weights,
            {
                task: (outcome.previews[task], truth, tasks.get(task, {}).get("test"))
                for task, truth in outcome.truths.items()
            },
            (outcome.preview, outcome.truth, score.get("test")),
        )

    rows = []
    if best is not None:
        rows.append(row("best", best))
    elif len(study.directions) > 1 and any(o.is_truth and o.feasible for o in outcomes):
        front = {t.number for t in study.best_trials}
        rows += [
            row(f"trial {o.trial}", o)
            for o in outcomes
            if o.trial in front and o.kind == "promoted"
        ]
    for outcome in outcomes:
        if outcome.kind == "baseline" and outcome.baseline is not None:
            alone = "uniform" if outcome.baseline == UNIFORM else f"{outcome.baseline} alone"
            rows.append(row(alone, outcome))
    return rows


def _tested(report: Mapping[str, Any] | None) -> dict[int, Mapping[str, Any]]:
    """Rows of a report, by trial."""
    if report is None:
        return {}
    front = report["front"]["points"] if report["front"] else []
    rows = [report["best"], *report["baselines"].values(), *front]
    return {row["trial"]: row for row in rows if row is not None}


def _answer(
    study: optuna.Study,
    names: Sequence[str],
    rows: Sequence[Row],
    outcomes: Sequence[Outcome],
    upwards: Mapping[str, bool],
    report: Mapping[str, Any] | None,
) -> list[str]:
    truths = [o for o in outcomes if o.is_truth]
    if not truths:
        return ["Nothing has been finetuned to its end yet: there are previews only."]
    by_name = {row.name: row for row in rows}
    best, uniform = by_name.get("best"), by_name.get("uniform")
    if len(study.directions) > 1:
        told = [
            f"There is no single best: each task is an objective. {len(study.best_trials)} of "
            f"{len(truths)} finetunes are on the Pareto front."
        ]
        if report is not None and report["front"] is not None:
            front = report["front"]
            told.append(
                f"Hypervolume {front['hypervolume']:.4g}, of the baselines alone "
                f"{front['hypervolume_of_baselines']:.4g}."
            )
        return told
    if best is None:
        return ["No finetune satisfies the constraints: there is no best one yet."]
    told = []
    if uniform is not None and uniform.trial == best.trial:
        told.append("No weights beat uniform ones in this study: use uniform weights.")
    elif uniform is not None:
        sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
        gains = ", ".join(
            f"{gain:+.4f} on {data} data"
            for data, gain in _gains(best.score, uniform.score, sign).items()
        )
        told.append(f"Gain over uniform weights: {gains or 'not known'}.")
    alone = {name: by_name[f"{name} alone"] for name in names if f"{name} alone" in by_name}
    if alone and len(names) > 1:
        parts = []
        for name, row in alone.items():
            gains_of = _gains(best.tasks[name], row.tasks[name], 1.0 if upwards[name] else -1.0)
            shown = ", ".join(f"{data} {gain:+.4f}" for data, gain in gains_of.items())
            parts.append(f"{name} {shown or 'not known'}")
        told.append(f"Gain over each task finetuned alone: {'; '.join(parts)}.")
    return told


def _gains(
    value: Sequence[float | None], reference: Sequence[float | None], sign: float
) -> dict[str, float]:
    """How much better, on validation data and, where known, on test data."""
    gains = {}
    for i, data in ((1, "validation"), (2, "test")):
        a, b = value[i], reference[i]
        if a is not None and b is not None:
            gains[data] = sign * (a - b)
    return gains


def _warnings(
    study: optuna.Study,
    rows: Sequence[Row],
    outcomes: Sequence[Outcome],
    judged: Mapping[str, Any] | None,
    report: Mapping[str, Any] | None,
) -> list[str]:
    told = []
    by_name = {row.name: row for row in rows}
    best, uniform = by_name.get("best"), by_name.get("uniform")
    if report is not None and report["constraints"] is not None:
        told += report["constraints"]["warnings"]
    if judged is not None and judged["warning"]:
        told.append(f"Previews of the score: {judged['warning']}.")
    if uniform is None and any(o.is_truth for o in outcomes):
        told.append("Uniform weights have no truth yet.")
    if best is not None and uniform is not None and best.trial != uniform.trial:
        sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
        if _gains(best.score, uniform.score, sign).get("test", 1.0) <= 0:
            told.append("On test data uniform weights are as good or better.")
        n_truths = sum(o.is_truth for o in outcomes)
        told.append(
            f"The best of {n_truths} finetunes is picked by the validation data that it is "
            f"measured on, which flatters it; test data, where shown, had no part in the choice."
        )
    return told


def _costs(
    study: optuna.Study, outcomes: Sequence[Outcome], report: Mapping[str, Any] | None
) -> list[tuple[str, int | None, float | None]]:
    cost: Mapping[str, Any] = {} if report is None else report["cost"]
    refined = sum(o.refined_steps for o in outcomes)
    n_truths = sum(o.is_truth for o in outcomes)
    rows: list[tuple[str, int | None, float | None]] = [
        (
            f"{len(task_names(study))} task runs",
            cost.get("task_run_steps", task_run_steps(study) or None),
            cost.get("task_run_seconds"),
        ),
        (f"{len(outcomes):,} previews", None, cost.get("preview_seconds")),
        (
            f"{n_truths:,} finetunes",
            sum(o.finetune_steps for o in outcomes),
            cost.get("finetune_seconds"),
        ),
    ]
    if cost:
        rows.insert(1, ("posteriors", None, cost["posterior_seconds"]))
    if refined:
        rows.insert(-1, ("refined previews", refined, cost.get("refinement_seconds")))
    return rows


def _drawn(outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
    """All truths, and of very many previews every other one, every third one, ..."""
    stride = -(-len(outcomes) // _MAX_POINTS)
    return [o for i, o in enumerate(outcomes) if o.is_truth or i % stride == 0]


def _point(outcome: Outcome, names: Sequence[str]) -> list[Any]:
    """trial, kind, baseline, weights, previews and truths (the score first), feasible."""
    return [
        outcome.trial,
        outcome.kind,
        outcome.baseline,
        [_short(outcome.weights[name]) for name in names],
        [_short(outcome.preview), *(_short(outcome.previews[name]) for name in names)],
        [_short(outcome.truth), *(_short(outcome.truths[name]) for name in names)],
        outcome.feasible,
    ]


def _lines(study: optuna.Study, names: Sequence[str]) -> list[Any]:
    """Offset, slope and its interval for the score and each task; None where not known."""
    lines = fitted_lines(study)
    found = [lines.get(quantity) for quantity in (None, *names)]
    return [None if f is None else [f.offset, f.slope, f.low, f.high] for f in found]


def _limits(names: Sequence[str], report: Mapping[str, Any] | None) -> list[list[Any]]:
    """Of each constraint the task's index, "at_least" or "at_most", and the bound."""
    if report is None or report["constraints"] is None:
        return []
    return [
        [names.index(limit["task"]), sense, _short(limit[sense])]
        for limit in report["constraints"]["limits"].values()
        for sense in limit.keys() & {"at_least", "at_most"}
    ]


def _curve(study: optuna.Study, outcomes: Sequence[Outcome]) -> list[list[Any]]:
    try:
        curve = cost_curve(study, outcomes)
    except ValueError:  # no reference point
        return []
    return [
        [p.steps, _short(p.value), _short(p.best), p.outcome.trial, p.outcome.kind] for p in curve
    ]


def _front(study: optuna.Study, names: Sequence[str], upwards: Mapping[str, bool]) -> list[Any]:
    if len(names) < 2:
        return []
    try:
        front = estimated_front(
            study, names, maximize=upwards, n_points=_FRONT_POINTS, max_points=_MAX_FRONT
        )
    except ValueError:  # a task without any metrics
        return []
    return [
        [[_short(part[name]) for name in names] for part in (p.weights, p.mean, p.std)]
        for p in front
    ]


def _models(
    study: optuna.Study, names: Sequence[str], upwards: Mapping[str, bool], several: bool
) -> list[Json | None]:
    """The posteriors of the score and of each task's metric; None where nothing is known."""
    history = TrialReader(tuple(names)).read(study.study_name, study.get_trials(deepcopy=False))
    sign = 1.0 if study.directions[0] == StudyDirection.MAXIMIZE else -1.0
    return [
        None if several else _model(history.score(sign)),
        *(_metric_model(history, i, upwards[name]) for i, name in enumerate(names)),
    ]


def _metric_model(history: History, index: int, upwards: bool) -> Json | None:
    return _model(history.metric(index, 1.0 if upwards else -1.0))


def _model(series: Series) -> Json | None:
    from optuna_merge.samplers._model import TruthModel

    if not len(series.previews) + len(series.truths):
        return None
    return export_model(TruthModel.fit(replace(series, pending=None)))


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")
