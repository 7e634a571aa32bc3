"""What a study has found, as data and as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from optuna_merge._files import write_json
from optuna_merge._optuna import PROMOTED_AT, lineage_root, retry_history
from optuna_merge._tries import FAILURE, TRIES
from optuna_merge._turns import models_turn
from optuna_merge.calibration import FAMILY_PREVIEWS, format_calibration, study_calibration
from optuna_merge.fitting import FittedStudy
from optuna_merge.fronts import hypervolume
from optuna_merge.models import evaluate_tasks, task_batches
from optuna_merge.outcomes import study_outcomes
from optuna_merge.pruners import RACED_OUT
from optuna_merge.study import BASELINE
from optuna_merge.weights import canonical_weights, param_name

Json = dict[str, Any]
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


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
        `baselines`, `counts`, `failures` (weightings that were given up), `cost`,
        `rank_correlation` of the score and of each task (None: too few truths), `calibration`
        (the same and more, see `Calibration`), `definition`.
    """
    trials = study.get_trials(deepcopy=False)
    previewed = [t for t in trials if _is_preview(t)]
    raced_out = [t for t in trials if RACED_OUT in t.user_attrs and lineage_root(t) == t.number]
    raced_out_seconds = sum(t.user_attrs["partial_preview_seconds"] for t in raced_out)
    shares = [t.user_attrs["preview_examples"] for t in raced_out]
    truths = [t for t in trials if t.state == TrialState.COMPLETE]
    baselines = {t.user_attrs[BASELINE]: t for t in truths if BASELINE in t.user_attrs}
    is_pareto = fitted.definition.is_pareto
    feasible = [t for t in truths if all(value <= 0 for value in t.constraints.values())]
    best = study.best_trial if feasible and not is_pareto else None
    # A killed trial's clone carries its predecessor's values: the latest of each lineage counts.
    steps = fitted.definition.refinement_steps
    before = max(steps, default=0)
    finetunes = {lineage_root(t): t for t in trials if _was_trained(t, before)}
    refined = {lineage_root(t): t for t in trials if _refined_steps(t, steps)}
    outcomes = study_outcomes(study) if previewed else []
    finetune_seconds = [
        t.user_attrs["truth_seconds"]
        for t in finetunes.values()
        if "truth_seconds" in t.user_attrs
    ]
    preview_seconds = [t.user_attrs["preview_seconds"] for t in previewed]
    per_finetune = sum(finetune_seconds) / len(finetune_seconds) if finetune_seconds else None
    per_preview = sum(preview_seconds) / len(preview_seconds) if preview_seconds else None
    calibration = study_calibration(study, fitted.definition.names)
    return {
        "study": study.study_name,
        "score": fitted.parts["score"],
        "best": None if best is None else _row(best, fitted, test),
        "front": _front(study, fitted, feasible, test) if is_pareto else None,
        "constraints": _constraints(fitted, truths, feasible, test),
        "baselines": {name: _row(t, fitted, test) for name, t in baselines.items()},
        "counts": {
            "trials": len(trials),
            "previews": len(previewed),
            "raced_out": len(raced_out),
            "refined": sum(o.refined_steps > 0 for o in outcomes),
            "truths": len(truths),
            "promoted": len([t for t in truths if BASELINE not in t.user_attrs]),
            "failed": len([t for t in trials if t.state == TrialState.FAIL]),
        },
        "failures": _failures(trials, fitted.definition.names),
        "cost": {
            **fitted.costs,
            "preview_seconds": sum(preview_seconds)
            + raced_out_seconds
            + sum(t.user_attrs.get(f"{FAMILY_PREVIEWS}_seconds", 0.0) for t in truths),
            "raced_out_share": sum(shares) / len(shares) if shares else None,
            "refinement_steps": sum(o.refined_steps for o in outcomes),
            "refinement_seconds": sum(
                t.user_attrs.get("refinement_seconds", 0.0) for t in refined.values()
            ),
            "finetune_steps": sum(o.finetune_steps for o in outcomes),
            "finetune_seconds": sum(finetune_seconds),
            "seconds_per_preview": per_preview,
            "seconds_per_finetune": per_finetune,
            "preview_to_finetune": per_preview / per_finetune
            if per_preview is not None and per_finetune
            else None,
        },
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


def format_report(report: Mapping[str, Any]) -> str:
    """The report as a plain-text table, for terminals and logs."""
    best, cost, counts = report["best"], report["cost"], report["counts"]
    lines = [f"Study {report['study']!r}, score: {report['score']}", ""]
    found = report["constraints"]
    if found is not None and found["warnings"]:
        lines += [*found["warnings"], ""]
    if not counts["truths"]:
        lines.append("No truth yet: no trial has been finetuned to its end.")
    elif report["front"] is not None:
        lines += _front_lines(report)
    elif best is not None:
        weights = _format_weights(best["weights"])
        lines += [f"Best task weights: {weights}  (trial {best['trial']})", ""]
        lines += [*_table({"best": best, **report["baselines"]}), "", _verdict(report)]
        kept = [f"{name} by {-value:.4f}" for name, value in best.get("constraints", {}).items()]
        lines += [f"Constraints kept: {', '.join(kept)}"] if kept else []
    else:
        lines += _table({"closest": found["closest"], **report["baselines"]})
    lines += [
        "",
        f"Previews {counts['previews']}{_raced_out(report)}, finetunes {counts['truths']} "
        f"({counts['promoted']} promoted, {len(report['baselines'])} baselines), "
        f"failed {counts['failed']}",
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
            "weights": dict(
                zip(names, canonical_weights([trial.params[param_name(n)] for n in names]))
            )
            if all(param_name(name) in trial.params for name in names)
            else None,
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


def _front(
    study: optuna.Study, fitted: FittedStudy, feasible: list[FrozenTrial], test: bool
) -> Json:
    """The Pareto front of the truths, and the volume that it dominates."""
    signs = np.array([1.0 if d == "maximize" else -1.0 for d in fitted.definition.directions])
    reference = fitted.reference_point
    corner = signs * np.array(list(reference.values()))

    def volume(trials: list[FrozenTrial]) -> float:
        return hypervolume(signs * np.array([t.values for t in trials]), corner) if trials else 0.0

    points = sorted(study.best_trials, key=lambda t: t.number) if feasible else []
    return {
        "points": [_row(t, fitted, test) for t in points],
        "reference_point": reference,
        "hypervolume": volume(feasible),
        "hypervolume_of_baselines": volume([t for t in feasible if BASELINE in t.user_attrs]),
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
    return [
        *lines,
        "",
        f"Hypervolume {front['hypervolume']:.6g}, of the baselines alone "
        f"{front['hypervolume_of_baselines']:.6g}; reference point: {point}",
    ]


def _constraints(
    fitted: FittedStudy, truths: list[FrozenTrial], feasible: list[FrozenTrial], test: bool
) -> Json | None:
    """The constraints' bounds, how many truths keep them, and what is to be said about them."""
    limits = fitted.constraints
    if limits is None:
        return None
    described = limits.describe()
    told = [
        f"Task {described[name]['task']} violates constraint {name} by {value:.4f} when it is "
        f"finetuned alone: it may be that no weights satisfy it."
        for name, value in limits.values(fitted.alone).items()
        if value > 0
    ]
    closest = None
    if truths and not feasible:
        nearest = min(truths, key=lambda t: (sum(_missed(t).values()), t.number))
        closest = _row(nearest, fitted, test)
        by = ", ".join(f"{name} by {value:.4f}" for name, value in _missed(nearest).items())
        told.insert(
            0,
            f"No finetune satisfies the constraints: there is no best trial. The closest is trial "
            f"{nearest.number}, which misses {by}. Relax the constraints, or let it search on.",
        )
    return {
        "limits": described,
        "feasible_truths": len(feasible),
        "closest": closest,
        "warnings": told,
    }


def _missed(trial: FrozenTrial) -> dict[str, float]:
    return {name: value for name, value in trial.constraints.items() if value > 0}


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _row(trial: FrozenTrial, fitted: FittedStudy, test: bool) -> Json:
    names = fitted.definition.names
    attrs = trial.user_attrs
    weights = {name: attrs[f"weight_{name}"] for name in names}
    tested = _test_metrics(weights, fitted) if test else {}
    tasks = {
        name: {
            "preview": attrs.get(f"preview_{name}"),
            "truth": attrs.get(f"truth_{name}"),
            "test": tested.get(name),
        }
        for name in names
    }
    row: Json = {"trial": trial.number, "weights": weights, "tasks": tasks}
    if trial.constraints:
        row["constraints"] = {name: _finite(value) for name, value in trial.constraints.items()}
    if fitted.definition.is_pareto:
        return row
    complete = set(tested) == set(names)
    return {
        **row,
        "score": {
            "preview": trial.intermediate_values.get(0),
            "truth": trial.value,
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
    path = run.path.with_name("test.json")
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


def _verdict(report: Mapping[str, Any]) -> str:
    best = report["best"]
    uniform = report["baselines"].get("uniform")
    if uniform is None:
        return "Uniform weights have no truth yet."
    if any(value is None or value > 0 for value in uniform.get("constraints", {}).values()):
        return "Uniform weights don't satisfy the constraints; the best trial does."
    if uniform["trial"] == best["trial"]:
        return "No weights beat uniform ones in this study: use uniform weights."
    gain = best["score"]["truth"] - uniform["score"]["truth"]
    return f"Gain over uniform weights: {gain:+.4f} on validation data" + (
        f", {best['score']['test'] - uniform['score']['test']:+.4f} on test data"
        if best["score"]["test"] is not None and uniform["score"]["test"] is not None
        else ""
    )


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


def _is_preview(trial: FrozenTrial) -> bool:
    """Whether this trial made a preview of its own: no copy, no retry, not taken from another."""
    attrs = trial.user_attrs
    own = lineage_root(trial) == trial.number and "preview_taken_from" not in attrs
    if len(trial.intermediate_values) == 0:  # a Pareto study, or a preview killed half-way
        return own and "preview_seconds" in attrs and trial.state in _ENDED
    return own and 0 in trial.intermediate_values and "preview_seconds" in attrs


def _was_trained(trial: FrozenTrial, before: int) -> bool:
    """Whether steps of a finetune were done for it: it was not found finished."""
    attrs = trial.user_attrs
    started = max(trial.intermediate_values, default=0) > before or "truth_seconds" in attrs
    return started and not attrs.get("truth_reused", False)


def _refined_steps(trial: FrozenTrial, steps: Sequence[int]) -> int:
    """Training steps of its own refined previews: those that a copy came with are another's."""
    inherited = trial.user_attrs.get(PROMOTED_AT, 0)
    own = [k for k in steps if k in trial.intermediate_values and k > inherited]
    return max(own, default=0)
