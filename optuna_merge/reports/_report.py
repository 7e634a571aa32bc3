"""What a study has found, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from optuna_merge.reports._grid import grid_told
from optuna_merge.reports._reading import Json, Reading
from optuna_merge.reports._test_data import metrics_on_test
from optuna_merge.trials import (
    FAILURE,
    SCORE,
    TRIES,
    Findings,
    Outcome,
    baseline_of,
    read_study,
    retry_history,
    task_names,
    trial_weights,
)

if TYPE_CHECKING:
    from optuna_merge.fitting import Damping, Workbench


def make_report(study: optuna.Study, fitted: Workbench, *, test: bool = True) -> Json:
    """Make the report of a study: its results as JSON values.

    Args:
        study: The study.
        fitted: Its task runs and posteriors: the result of `fit`, `from_trainer` or
            `from_command`, or another `Workbench`.
        test: Whether to evaluate the best model and the baselines on the tasks' test data, if the
            finetuned model is in this working folder. Only a `FittedStudy` has test data.

    Returns:
        `best` (the best truth that satisfies the constraints; None without one), `front` (of a
        Pareto study; else None), `constraints` (None without any), `baselines`, `counts` (see
        `Counts`), `verdict` (gains, of which positive ones are better, and sentences), `maximize`,
        `noise` (of one finetune; see `Noise`), `failures` (weightings that were given up), `cost`,
        `spent` (in finetunes, see `Spending`), `calibration` (see `Calibration`), `definition`.
    """
    findings = read_study(study)
    tested = metrics_on_test(_shown(findings), fitted) if test else {}
    reading = Reading(study, findings, tested, _violated_alone(fitted))
    found: Damping | None = getattr(fitted, "damping", None)
    damping = None
    if found is not None:
        sweep = {f"{delta:g}": loss for delta, loss in found.sweep.items()}
        damping = {"value": found.value, "sweep": sweep}
    return _read(reading) | {
        "score": fitted.parts["score"],
        "constraints": _constraints(reading, fitted),
        "cost": dict(fitted.costs) | reading.costs,
        "damping": damping,
        "fingerprint": fitted.fingerprint,
        "definition": dict(fitted.parts),
    }


def study_report(study: optuna.Study) -> Json:
    """As `make_report`, by the trials alone: without test metrics, cost and definition.

    Args:
        study: The study.

    Raises:
        ValueError: no trial has task weights yet.
    """
    return _read(Reading.of(study))


def _read(reading: Reading) -> Json:
    """The part of a report that is read from the study alone."""
    findings, spent = reading.findings, reading.spending
    closest = findings.closest
    grids = {"grids": list(map(asdict, reading.grids)), "grid_told": grid_told(reading.grids)}
    return {
        "study": reading.study.study_name,
        "score": (reading.score or "pareto").removeprefix("score (").removesuffix(")"),
        "maximize": _by_name(findings.maximize),
        "best": None if findings.best is None else _row(reading, findings.best),
        "front": _front(reading) if findings.several else None,
        "constraints": None if closest is None else {"closest": _row(reading, closest)},
        "baselines": {name: _row(reading, o) for name, o in findings.baselines.items()},
        "counts": asdict(findings.counts),
        "verdict": asdict(reading.verdict),
        "noise": _by_name({name: of.as_json() for name, of in reading.noise.items()}),
        "failures": _failures(reading.study),
        "spent": asdict(spent) | {"total": spent.total, "told": reading.spent} | grids,
        "calibration": reading.calibration.as_json(),
    }


def _by_name(found: Mapping[str | None, Any]) -> Json:
    """What is known of the score (None: there is none) and of each task."""
    tasks = {name: value for name, value in found.items() if name is not None}
    return {"score": found.get(SCORE), "tasks": tasks}


def _shown(findings: Findings) -> list[Outcome]:
    """The finetunes that the report has rows of."""
    one = (findings.best, findings.closest)
    shown = [*findings.baselines.values(), *findings.front, *(o for o in one if o is not None)]
    return list({o.trial: o for o in shown}.values())


def _row(reading: Reading, outcome: Outcome) -> Json:
    """Weights and metrics of one finetune, and the values of its constraints."""
    findings, limits = reading.findings, outcome.constraints
    kept = {name: v if math.isfinite(v) else None for name, v in limits.items()}
    return {
        "trial": outcome.trial,
        "weights": dict(outcome.weights),
        "tasks": {name: reading.metrics(outcome, name) for name in findings.tasks},
        **({"constraints": kept} if kept else {}),
        **({} if findings.several else {"score": reading.metrics(outcome, SCORE)}),
    }


def _front(reading: Reading) -> Json:
    """The Pareto front of the truths, and the volume that it dominates."""
    findings = reading.findings
    whole, baselines = reading.hypervolumes or (None, None)
    front = sorted(findings.front, key=lambda o: o.trial)
    return {
        "points": [_row(reading, o) for o in front],
        "reference_point": findings.reference_point,
        "hypervolume": whole,
        "hypervolume_of_baselines": baselines,
    }


def _constraints(reading: Reading, fitted: Workbench) -> Json | None:
    """The constraints' bounds, how many truths keep them, and the closest where none does."""
    if fitted.goal.limits is None:
        return None
    closest = reading.findings.closest
    return {
        "limits": fitted.goal.limits.describe(),
        "feasible_truths": sum(o.feasible for o in reading.findings.truths),
        "closest": None if closest is None else _row(reading, closest),
    }


def _violated_alone(fitted: Workbench) -> list[str]:
    """Of each constraint that its task violates when it is finetuned alone, what that means."""
    limits = fitted.goal.limits
    if limits is None:
        return []
    described = limits.describe()
    return [
        f"Task {described[name]['task']} violates constraint {name} by {value:.4f} when it is "
        f"finetuned alone: it may be that no weights satisfy it."
        for name, value in limits.values(fitted.goal.alone).items()
        if value > 0
    ]


def _failures(study: optuna.Study) -> list[dict[str, Any]]:
    """Weightings that have no truth and get none: failed for good, and not as superfluous ones."""
    trials = study.get_trials(deepcopy=False)
    names = task_names(study, trials)
    retried = {number for trial in trials for number in retry_history(trial)}
    alive = {baseline_of(t) for t in trials if t.state != TrialState.FAIL}
    last = {}
    for trial in trials:
        baseline = baseline_of(trial)
        if (
            trial.state == TrialState.FAIL
            and TRIES in trial.user_attrs
            and trial.number not in retried
            and (baseline is None or baseline not in alive)
        ):
            last[baseline or trial.number] = trial
    return [
        {
            "trial": trial.number,
            "baseline": baseline_of(trial),
            "weights": trial_weights(trial.params, names),
            "tries": trial.user_attrs[TRIES],
            "reason": trial.user_attrs.get(FAILURE, "unknown"),
        }
        for trial in last.values()
    ]
