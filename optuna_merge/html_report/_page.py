"""What the page shows: read from the study, with what only the working folder knows put in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from optuna_merge._noise import Noise, finetune_noise, truth_models
from optuna_merge._verdict import Gain, Tested, Verdict, gain, judge, tested_metrics
from optuna_merge.calibration import study_calibration
from optuna_merge.outcomes import SCORE, Findings, Outcome, read_study, task_run_steps
from optuna_merge.surrogate import estimated_front, export_model
from optuna_merge.trials import UNIFORM
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

    `score` is the same triple, all None in a Pareto study; `trial` its number. `gains` are those
    over uniform weights by task and of the score (`SCORE`), of which positive ones are better.
    """

    name: str
    trial: int
    weights: Mapping[str, float]
    tasks: Mapping[str, tuple[float | None, float | None, float | None]]
    score: tuple[float | None, float | None, float | None]
    gains: Mapping[str | None, Gain]


@dataclass(frozen=True)
class Page:
    """Everything the template is filled with.

    Attributes:
        title: The study's name.
        tasks: Task names, in order.
        score: The score's name; None in a Pareto study.
        findings: What the study's trials say.
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
    findings: Findings
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

    def is_lower_better(self, quantity: str) -> bool:
        """Whether a task's metric, or else the score, is to be minimised."""
        return not self.findings.maximize.get(quantity, self.findings.maximize.get(SCORE, True))

    def better(self, quantity: str, change: float) -> str:
        """Whether a change of it is one for the better."""
        return "better" if (change > 0) != self.is_lower_better(quantity) else "worse"


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
        maximize: By task, whether its metric is to be maximised; None: as the study says.

    Raises:
        ValueError: no trial has task weights yet.
    """
    if maximize is None and report is not None:
        maximize = report["maximize"]["tasks"]
    findings = read_study(study, maximize=maximize)
    names, outcomes, several = findings.tasks, findings.outcomes, findings.several
    upwards = {name: findings.maximize[name] for name in names}
    tested = _tested(report)
    calibration = study_calibration(study, names, maximize=upwards).as_json()
    judged = [] if several else [("score", calibration["score"])]
    judged += [
        (f"score after {step} steps from the merge", found)
        for step, found in calibration["refined"].items()
    ]
    judged += calibration["tasks"].items()
    models = truth_models(study, findings)
    noise = finetune_noise(study, findings, models)
    verdict = _verdict(findings, report, tested, calibration["score"], noise.get(SCORE))
    rows = _rows(findings, tested)
    best = findings.best
    metric_names = study.metric_names
    score = None if several else metric_names[0] if metric_names else "score"
    return Page(
        title=study.study_name,
        tasks=names,
        score=score,
        findings=findings,
        answer=verdict.answer,
        best=next((row for row in rows if best is not None and row.trial == best.trial), None),
        rows=tuple(rows),
        warnings=verdict.warnings,
        costs=tuple(_costs(study, findings, report)),
        calibration=tuple(judged),
        data={
            "tasks": list(names),
            "score": score,
            "maximize": {"score": findings.maximize.get(SCORE, True)}
            | {f"task {i}": upwards[name] for i, name in enumerate(names)},
            "points": [_point(o, names) for o in _drawn(outcomes)],
            "n_previews": findings.counts.previews,
            "best": None if best is None else best.trial,
            "lines": _lines(study, names),
            "curve": _curve(study, outcomes),
            "curve_of": "hypervolume" if several else "best truth",
            "front": _front(study, names, upwards),
            "bars": {
                name: [_short(metrics.get(task)) for task in names]
                for name, metrics in compared_metrics(findings, best).items()
            },
            "limits": _limits(names, report),
            "models": [
                None if (model := models.get(q)) is None else export_model(model)
                for q in (SCORE, *names)
            ],
            "noise": [
                None if (of := noise.get(q)) is None else [_short(of.std), of.told]
                for q in (SCORE, *names)
            ],
        },
    )


def _verdict(
    findings: Findings,
    report: Mapping[str, Any] | None,
    tested: Tested,
    previews: Mapping[str, Any] | None,
    noise: Noise | None,
) -> Verdict:
    """The report's, or else the same without what only the working folder knows."""
    if report is not None:
        told = report["verdict"]
        return Verdict(answer=tuple(told["answer"]), warnings=tuple(told["warnings"]))
    return judge(findings, tested=tested, previews=previews, noise=noise)


def _rows(findings: Findings, tested: Tested) -> list[Row]:
    quantities = [*findings.tasks] if findings.several else [SCORE, *findings.tasks]
    uniform = findings.uniform

    def row(name: str, outcome: Outcome) -> Row:
        found = tested.get(outcome.trial, {})
        return Row(
            name,
            outcome.trial,
            outcome.weights,
            {
                task: (outcome.previews[task], truth, found.get(task))
                for task, truth in outcome.truths.items()
            },
            (outcome.preview, outcome.truth, found.get(SCORE)),
            {}
            if uniform is None
            else {q: gain(findings, q, outcome, uniform, tested) for q in quantities},
        )

    rows = [] if findings.best is None else [row("best", findings.best)]
    rows += [row(f"trial {o.trial}", o) for o in findings.front if o.kind == "promoted"]
    rows += [
        row("uniform" if name == UNIFORM else f"{name} alone", outcome)
        for name, outcome in findings.baselines.items()
    ]
    return rows


def _tested(report: Mapping[str, Any] | None) -> Tested:
    """Test metrics by trial, of a report's rows."""
    if report is None:
        return {}
    front = report["front"]["points"] if report["front"] else []
    rows = [report["best"], *report["baselines"].values(), *front]
    return tested_metrics(row for row in rows if row is not None)


def _costs(
    study: optuna.Study, findings: Findings, report: Mapping[str, Any] | None
) -> list[tuple[str, int | None, float | None]]:
    cost: Mapping[str, Any] = {} if report is None else report["cost"]
    counts, outcomes = findings.counts, findings.outcomes
    refined = sum(o.refined_steps for o in outcomes)
    rows: list[tuple[str, int | None, float | None]] = [
        (
            f"{len(findings.tasks)} task runs",
            cost.get("task_run_steps", task_run_steps(study) or None),
            cost.get("task_run_seconds"),
        ),
        (f"{counts.previews:,} previews", None, cost.get("preview_seconds")),
        (
            f"{counts.truths:,} finetunes",
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
    """trial, kind, baseline, weights, previews and truths (score first), feasible, previewed."""
    return [
        outcome.trial,
        outcome.kind,
        outcome.baseline,
        [_short(outcome.weights[name]) for name in names],
        [_short(outcome.preview), *(_short(outcome.previews[name]) for name in names)],
        [_short(outcome.truth), *(_short(outcome.truths[name]) for name in names)],
        outcome.feasible,
        outcome.previewed,
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


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")
