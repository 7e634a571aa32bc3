"""What a study has found, as data and as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from optuna_merge._base.files import write_json
from optuna_merge._base.turns import models_turn
from optuna_merge._noise import finetune_noise, truth_models
from optuna_merge._verdict import infeasible, judge, tested_metrics
from optuna_merge.calibration import format_calibration, study_calibration
from optuna_merge.fitting import FittedStudy
from optuna_merge.goals import hypervolume
from optuna_merge.models import evaluate_tasks, task_batches
from optuna_merge.outcomes import SCORE, Findings, Outcome, read_study
from optuna_merge.trials import BASELINE, FAILURE, TRIES, retry_history, trial_weights

Json = dict[str, Any]
T = TypeVar("T")


def make_report(study: optuna.Study, fitted: FittedStudy, *, test: bool = True) -> Json:
    """The study's results as JSON values.

    Args:
        study: The study.
        fitted: Its task runs and posteriors.
        test: Evaluate the best model and the baselines on the tasks' test data, where the
            finetuned model is in this working folder.

    Returns:
        `best` (the best truth that satisfies the constraints; None without one), `front` (of a
        Pareto study, with its hypervolume; else None), `constraints` (None without any),
        `baselines`, `counts` (see `Counts`), `verdict` (gains, of which positive ones are better
        whatever is minimised, and what is said of them), `maximize` (of the score and each task,
        whether larger is better), `noise` (of one finetune; see `Noise`), `failures` (weightings
        that were given up), `cost`, `rank_correlation` of the score and of each task (None: too
        few truths), `calibration` (the same and more, see `Calibration`), `definition`.
    """
    definition = fitted.definition
    findings = read_study(study, definition.names, maximize=definition.greater_is_better)
    rows = {o.trial: _row(o, fitted, test) for o in _shown(findings)}
    baselines = {name: rows[o.trial] for name, o in findings.baselines.items()}
    front = _front(findings, fitted, rows) if definition.is_pareto else None
    calibration = study_calibration(study, definition.names, maximize=definition.greater_is_better)
    noise = finetune_noise(study, findings, truth_models(study, findings))
    constraints = _constraints(findings, fitted, rows)
    verdict = judge(
        findings,
        tested=tested_metrics(rows.values()),
        previews=calibration.as_json()["score"],
        hypervolumes=None
        if front is None
        else (front["hypervolume"], front["hypervolume_of_baselines"]),
        noise=noise.get(SCORE),
        constraints=_violated_alone(fitted),
    )
    return {
        "study": study.study_name,
        "score": fitted.parts["score"],
        "maximize": _by_name(findings.maximize),
        "best": None if findings.best is None else rows[findings.best.trial],
        "front": front,
        "constraints": constraints,
        "baselines": baselines,
        "counts": asdict(findings.counts),
        "verdict": verdict.as_json(),
        "noise": _by_name({name: of.as_json() for name, of in noise.items()}),
        "failures": _failures(study.get_trials(deepcopy=False), definition.names),
        "cost": {**fitted.costs, **_costs(findings)},
        "damping": None
        if fitted.damping is None
        else {
            "value": fitted.damping.value,
            "sweep": {f"{delta:g}": loss for delta, loss in fitted.damping.sweep.items()},
        },
        "rank_correlation": {
            name: None if found.spearman is None else asdict(found.spearman)
            for name, found in calibration.items()
        },
        "calibration": calibration.as_json(),
        "fingerprint": fitted.fingerprint,
        "definition": fitted.parts,
    }


def _by_name(found: Mapping[str | None, T]) -> dict[str, Any]:
    """What is known of the score (None: there is none) and of each task."""
    tasks = {name: value for name, value in found.items() if name is not None}
    return {"score": found.get(SCORE), "tasks": tasks}


def _shown(findings: Findings) -> list[Outcome]:
    """The finetunes that a report has rows of."""
    single = (findings.best, findings.closest)
    chosen = [*findings.baselines.values(), *findings.front, *(o for o in single if o is not None)]
    return list({o.trial: o for o in chosen}.values())


def _costs(findings: Findings) -> Json:
    outcomes = findings.outcomes
    shares = [share for share, _ in findings.raced_out.values()]
    previews = [o.seconds.preview for o in outcomes if o.previewed]
    finetunes = [o.seconds.finetune for o in outcomes if o.seconds.finetune is not None]
    per_finetune = sum(finetunes) / len(finetunes) if finetunes else None
    per_preview = sum(previews) / len(previews) if previews else None
    return {
        "preview_seconds": sum(previews)
        + sum(seconds for _, seconds in findings.raced_out.values())
        + sum(o.seconds.compared for o in outcomes),
        "raced_out_share": sum(shares) / len(shares) if shares else None,
        "refinement_steps": sum(o.refined_steps for o in outcomes),
        "refinement_seconds": sum(o.seconds.refinement for o in outcomes),
        "finetune_steps": sum(o.finetune_steps for o in outcomes),
        "finetune_seconds": sum(finetunes),
        "seconds_per_preview": per_preview,
        "seconds_per_finetune": per_finetune,
        "preview_to_finetune": per_preview / per_finetune
        if per_preview is not None and per_finetune
        else None,
    }


def format_report(report: Mapping[str, Any]) -> str:
    """The report as a plain-text table, for terminals and logs."""
    best, cost, counts = report["best"], report["cost"], report["counts"]
    verdict, found = report["verdict"], report["constraints"]
    lines = [f"Study {report['study']!r}, score: {report['score']}{_sense(report)}", ""]
    if report["front"] is not None and report["front"]["points"]:
        lines += _front_lines(report)
    elif best is not None:
        weights = _format_weights(best["weights"])
        lines += [f"Best task weights: {weights}  (trial {best['trial']})", ""]
        lines += _table({"best": best, **report["baselines"]})
    elif found is not None and found["closest"] is not None and "score" in found["closest"]:
        lines += _table({"closest": found["closest"], **report["baselines"]})
    lines += ["", *verdict["answer"], *verdict["warnings"]]
    if best is not None and best.get("constraints"):
        kept = [f"{name} by {-value:.4f}" for name, value in best["constraints"].items()]
        lines.append(f"Constraints kept: {', '.join(kept)}")
    lines += [
        *_noise_lines(report),
        "",
        f"Previews {counts['previews']}{_raced_out(report)}, finetunes {counts['truths']} "
        f"({counts['promoted']} promoted, {counts['baselines']} baselines), "
        f"failed {counts['failed']}{_retried(counts)}",
        *_failure_lines(report),
        f"{'Cost':14} {'steps':>8} {'seconds':>9}",
        f"{'task runs':14} {cost['task_run_steps']:>8} {cost['task_run_seconds']:>9.1f}",
        f"{'posteriors':14} {'':>8} {cost['posterior_seconds']:>9.1f}",
        f"{'previews':14} {'':>8} {cost['preview_seconds']:>9.1f}",
        *_refinement_line(report),
        f"{'finetunes':14} {cost['finetune_steps']:>8} {cost['finetune_seconds']:>9.1f}",
    ]
    if cost["preview_to_finetune"] is not None:
        lines.append(
            f"One preview: {cost['seconds_per_preview']:.2f} s, one finetune: "
            f"{cost['seconds_per_finetune']:.1f} s, ratio 1/{1 / cost['preview_to_finetune']:.0f}"
        )
    lines += ["", "Previews against truths:", format_calibration(report["calibration"])]
    return "\n".join(lines)


def _failures(trials: list[FrozenTrial], names: Sequence[str]) -> list[Json]:
    """Weightings that have no truth and get none: failed for good, and not as superfluous ones."""
    retried = {number for trial in trials for number in retry_history(trial)}
    alive = {t.user_attrs.get(BASELINE) for t in trials if t.state != TrialState.FAIL}
    last = {}
    for trial in trials:
        baseline = trial.user_attrs.get(BASELINE)
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
            "baseline": trial.user_attrs.get(BASELINE),
            "weights": trial_weights(trial.params, names),
            "tries": trial.user_attrs[TRIES],
            "reason": trial.user_attrs.get(FAILURE, "unknown"),
        }
        for trial in last.values()
    ]


def _failure_lines(report: Mapping[str, Any]) -> list[str]:
    lines = []
    for row in report["failures"]:
        what = row["baseline"] or (_format_weights(row["weights"]) if row["weights"] else "-")
        tries = f"{row['tries']} {'try' if row['tries'] == 1 else 'tries'}"
        lines.append(f"Given up after {tries}: {what} (trial {row['trial']}): {row['reason']}")
    return lines


def _format_weights(weights: Mapping[str, float]) -> str:
    return ", ".join(f"{task} {weight:.3f}" for task, weight in weights.items())


def _table(rows: Mapping[str, Any]) -> list[str]:
    """Preview, truth and test metrics of some trials, a line per task and one for the score."""
    tasks = list(next(iter(rows.values()))["weights"])
    width = max(map(len, [*tasks, "score"]))
    lines = [
        f"{'':{width}}" + "".join(f"  {name:^26}" for name in rows),
        f"{'':{width}}" + f"  {'preview':>8} {'truth':>8} {'test':>8}" * len(rows),
    ]
    for task in tasks:
        cells = "".join(f"  {_cells(row['tasks'][task])}" for row in rows.values())
        lines.append(f"{task:{width}}{cells}")
    cells = "".join(f"  {_cells(row['score'])}" for row in rows.values())
    return [*lines, f"{'score':{width}}{cells}"]


def _front(findings: Findings, fitted: FittedStudy, rows: Mapping[int, Json]) -> Json:
    """The Pareto front of the truths, and the volume that it dominates."""
    signs = np.array([findings.sign(name) for name in findings.tasks])
    reference = fitted.reference_point
    corner = signs * np.array(list(reference.values()))

    def volume(outcomes: Sequence[Outcome]) -> float:
        points = [[_nan(o.truths[name]) for name in findings.tasks] for o in outcomes]
        return hypervolume(signs * np.array(points), corner) if points else 0.0

    feasible = [o for o in findings.truths if o.feasible]
    return {
        "points": [rows[o.trial] for o in sorted(findings.front, key=lambda o: o.trial)],
        "reference_point": reference,
        "hypervolume": volume(feasible),
        "hypervolume_of_baselines": volume([o for o in feasible if o.kind == "baseline"]),
    }


def _front_lines(report: Mapping[str, Any]) -> list[str]:
    front = report["front"]
    names = list(front["reference_point"])
    baselines = {row["trial"]: name for name, row in report["baselines"].items()}
    width = max(map(len, [*names, "x" * 22]))
    lines = [
        f"Pareto front of the truths, {len(front['points'])} points (weight, truth, test):",
        f"{'trial':>14}" + "".join(f"  {name:^{width}}" for name in names),
    ]
    for row in front["points"]:
        label = f"{baselines.get(row['trial'], '')} {row['trial']}".strip()
        cells = [
            f"{row['weights'][name]:6.3f} "
            + " ".join(_cell(row["tasks"][name][key], 7) for key in ("truth", "test"))
            for name in names
        ]
        lines.append(f"{label:>14}" + "".join(f"  {cell:>{width}}" for cell in cells))
    point = ", ".join(f"{name} {value:.4f}" for name, value in front["reference_point"].items())
    return [*lines, "", f"Hypervolumes are measured from the reference point {point}."]


def _constraints(findings: Findings, fitted: FittedStudy, rows: Mapping[int, Json]) -> Json | None:
    """The constraints' bounds, how many truths keep them, and what is to be said about them."""
    limits = fitted.goal.limits
    if limits is None:
        return None
    closest = findings.closest
    told = [] if closest is None else [infeasible(closest)]
    return {
        "limits": limits.describe(),
        "feasible_truths": sum(o.feasible for o in findings.truths),
        "closest": None if closest is None else rows[closest.trial],
        "warnings": [*told, *_violated_alone(fitted)],
    }


def _violated_alone(fitted: FittedStudy) -> list[str]:
    """Of each constraint that its task violates when it is finetuned alone, what that means."""
    limits = fitted.goal.limits
    if limits is None:
        return []
    described = limits.describe()
    return [
        f"Task {described[name]['task']} violates constraint {name} by {value:.4f} when it is "
        f"finetuned alone: it may be that no weights satisfy it."
        for name, value in limits.values(fitted.alone).items()
        if value > 0
    ]


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def _row(outcome: Outcome, fitted: FittedStudy, test: bool) -> Json:
    names = fitted.definition.names
    tested = _test_metrics(outcome.weights, fitted) if test else {}
    row: Json = {
        "trial": outcome.trial,
        "weights": dict(outcome.weights),
        "tasks": {
            name: {
                "preview": outcome.previews[name],
                "truth": outcome.truths[name],
                "test": tested.get(name),
            }
            for name in names
        },
    }
    if outcome.constraints:
        row["constraints"] = {name: _finite(v) for name, v in outcome.constraints.items()}
    if fitted.definition.is_pareto:
        return row
    complete = set(tested) == set(names)
    return {
        **row,
        "score": {
            "preview": outcome.preview,
            "truth": outcome.truth,
            "test": fitted.definition.score_of(tested, _alone_on_test(fitted))
            if complete
            else None,
        },
    }


@models_turn()
def _test_metrics(weights: Mapping[str, float], fitted: FittedStudy) -> dict[str, float]:
    """Test metrics of the finetune at `weights`; empty if its model isn't in this folder.

    The result is kept beside the model: test data are touched once for it.
    """
    settings = fitted.definition.finetuning
    run = fitted.store.find(weights, settings, fitted.start(weights))
    tasks = [task for task in fitted.tasks if task.test is not None]
    if run is None or not tasks:
        return {}
    path = fitted.store.test_path(run)
    if not path.exists():
        fitted.model.reset()
        fitted.model.load(run.parameters(), source=str(run.path))
        batches = task_batches(
            fitted.model, tasks, "test", batch_size=settings.evaluation_batch_size
        )
        evaluations = evaluate_tasks(fitted.model, tasks, batches, "test")
        write_json(path, {name: e.metric.value for name, e in evaluations.items()})
    found: dict[str, float] = json.loads(path.read_text())
    return found


def _alone_on_test(fitted: FittedStudy) -> dict[str, float]:
    """Each task's test metric when finetuned alone, for relative scores."""
    names = fitted.definition.names
    alone = {}
    for name in names:
        weights = {other: float(other == name) for other in names}
        alone[name] = _test_metrics(weights, fitted)[name]
    return alone


def _sense(report: Mapping[str, Any]) -> str:
    """A word on what is minimised; nothing where larger is better, as one expects."""
    maximize = report["maximize"]
    if maximize["score"] is not None:
        return "" if maximize["score"] else " (lower is better)"
    lower = [name for name, upwards in maximize["tasks"].items() if not upwards]
    return f" (lower is better: {', '.join(lower)})" if lower else ""


def _noise_lines(report: Mapping[str, Any]) -> list[str]:
    if not report["counts"]["truths"]:
        return []
    noise = report["noise"]
    rows = {} if noise["score"] is None else {"score": noise["score"]}
    return [
        f"Noise of one finetune, {name}: {of['told']}"
        for name, of in (rows | noise["tasks"]).items()
    ]


def _retried(counts: Mapping[str, int]) -> str:
    return f" ({counts['retried']} tried again)" if counts["retried"] else ""


def _refinement_line(report: Mapping[str, Any]) -> list[str]:
    cost, count = report["cost"], report["counts"]["refined"]
    steps = cost["refinement_steps"] + cost.get("refinement_choice_steps", 0)
    seconds = cost["refinement_seconds"] + cost.get("refinement_choice_seconds", 0.0)
    return [f"{f'{count} refined':14} {steps:>8} {seconds:>9.1f}"] if steps else []


def _raced_out(report: Mapping[str, Any]) -> str:
    count, share = report["counts"]["raced_out"], report["cost"]["raced_out_share"]
    return f" (and {count} raced out after {share:.0%} of the examples)" if count else ""


def _cells(values: Mapping[str, float | None]) -> str:
    return " ".join(_cell(values[key], 8) for key in ("preview", "truth", "test"))


def _cell(value: float | None, width: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.4f}"
