"""The objective: preview at step 0, and for what the pruner promotes, the real finetune."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from optuna_merge.exceptions import (
    NotFiniteError,
    TrainingDivergedError,
    TrialLostError,
)
from optuna_merge.fitting import Workbench
from optuna_merge.pruners import should_prune, stop_reason
from optuna_merge.search import check_prepared, duplicate_baseline
from optuna_merge.trials import (
    BASELINE,
    CONSTRAINT,
    DUPLICATE_OF,
    FAILURE,
    GIVEN_UP,
    PREVIEW,
    PREVIEW_AT_ANCHOR,
    PREVIEW_SE,
    PREVIEW_SECONDS,
    PREVIEW_TAKEN_FROM,
    REPEAT,
    TRIES,
    TRUTH,
    TRUTH_REUSED,
    TRUTH_SECONDS,
    WEIGHT,
    is_running,
    latest_view,
    of_task,
    refused_params,
    reported_steps,
    set_user_attrs,
    suggest_weights,
)

_logger = logging.getLogger(__name__)


class Objective:
    """The objective of a study, for Optuna's `study.optimize`.

    A trial suggests task weights, merges the posteriors at these weights, and reports the score of
    the merge (the preview) at step 0. If the study's pruner then prunes the trial, it ends as
    PRUNED. Otherwise the model is really finetuned at these weights; it reports the score after
    the training steps of each rung, and the trial's value is the final score on validation data.
    `PromotionPruner` prunes all trials after their previews, except baselines and the copies of
    promising trials that it queues. If it has a reason to stop (`stop_reason`), the next preview
    calls `study.stop()`.

    A trial of a Pareto study reports nothing, because Optuna reports in studies with one objective
    only. Its preview is in the user attributes `preview_<task>`, its finetune has no rungs, and
    its values are the tasks' metrics.

    The constraints of a definition are set on each trial when it ends: from its truth, or from its
    preview if it has no truth. The user attributes `constraint_<name>` hold the same numbers (0 or
    less is feasible).

    The threads of `study.optimize(..., n_jobs=...)` take turns at the model, so every number is
    the one that a single thread would find. To go faster, start several processes.

    A trial ends as FAIL, with the reason in the user attribute `failure`, if training diverged, if
    a metric or score is NaN or infinite, or if it was enqueued with parameters that are no
    weights. A baseline is finetuned also where its preview is NaN or infinite.

    Args:
        workbench: What makes previews and finetunes: the result of `fit`, `from_trainer` or
            `from_command`, or another `Workbench`.
        progress: Whether to show a progress bar for every finetune.
    """

    def __init__(self, workbench: Workbench, *, progress: bool = True) -> None:
        self._workbench = workbench
        self._progress = progress
        self._names, self._goal = workbench.names, workbench.goal

    def __call__(self, trial: optuna.Trial) -> float | tuple[float, ...]:
        check_prepared(trial.study, self._workbench)
        refused = refused_params(latest_view(trial), self._names)
        if refused is not None:  # before it takes them: no reader will stumble over it
            tries = int(trial.user_attrs.get(TRIES, 0)) + 1
            set_user_attrs(trial, {TRIES: tries, GIVEN_UP: True})
            return _fail(trial, refused)
        weights = suggest_weights(trial, self._names)
        is_baseline = BASELINE in trial.user_attrs
        trials = trial.study.get_trials(deepcopy=False) if is_baseline else []
        twin = duplicate_baseline(trials, trials[trial.number]) if is_baseline else None
        if twin is not None:  # (of twice promoted ones the pruner sees to it)
            trial.set_user_attr(DUPLICATE_OF, twin)
            return _fail(trial, f"duplicate baseline: trial {twin} has it")
        try:
            if not self._has_preview(latest_view(trial)):
                try:
                    self._preview(trial, weights)
                except NotFiniteError as error:
                    if not is_baseline:
                        raise
                    # A baseline's finetune doesn't depend on what its merge is worth.
                    _logger.warning(
                        "trial %d is finetuned without preview: %s", trial.number, error
                    )
            if should_prune(trial) and not is_baseline:
                seen = {name: trial.user_attrs[of_task(PREVIEW, name)] for name in self._names}
                self._set_constraints(trial, seen)
                reason = stop_reason(trial.study)
                if reason is not None:
                    _logger.info("the search stops: %s", reason)
                    with contextlib.suppress(RuntimeError):  # asked and told: nothing to stop
                        trial.study.stop()
                raise optuna.TrialPruned("ends with its preview")
            return self._truth(trial, weights, is_baseline=is_baseline)
        except (TrainingDivergedError, NotFiniteError) as error:
            trial.set_user_attr(TRIES, int(trial.user_attrs.get(TRIES, 0)) + 1)
            return _fail(trial, str(error))

    def _has_preview(self, trial: FrozenTrial) -> bool:
        if self._goal.is_pareto:
            return all(of_task(PREVIEW, name) in trial.user_attrs for name in self._names)
        return 0 in trial.intermediate_values

    def _preview(self, trial: optuna.Trial, weights: Mapping[str, float]) -> None:
        """Record the preview, made or taken from a trial of equal weights."""
        twin = self._same_preview(trial, weights)
        if twin is None:
            preview = self._workbench.preview(weights)
            score = None if self._goal.is_pareto else self._score(preview.values, "the merge")
            attrs: dict[str, Any] = {PREVIEW_SECONDS: preview.seconds}
            attrs[PREVIEW_AT_ANCHOR] = weights in self._workbench.anchors
            for name in self._names:
                attrs[of_task(WEIGHT, name)] = weights[name]
                attrs[of_task(PREVIEW_SE, name)] = _number(preview.metrics[name].standard_error)
            # Last: in a Pareto study a preview that is killed half-way lacks some task's metric.
            for name in self._names:
                attrs[of_task(PREVIEW, name)] = _number(preview.metrics[name].value)
        else:
            score = twin.intermediate_values.get(0)
            attrs = {PREVIEW_SECONDS: 0.0, PREVIEW_TAKEN_FROM: twin.number}
            if PREVIEW_AT_ANCHOR in twin.user_attrs:
                attrs[PREVIEW_AT_ANCHOR] = twin.user_attrs[PREVIEW_AT_ANCHOR]
            for key in (WEIGHT, PREVIEW_SE, PREVIEW):
                names = [of_task(key, name) for name in self._names]
                attrs |= {name: twin.user_attrs[name] for name in names}
        set_user_attrs(trial, attrs)
        if score is not None and not self._goal.is_pareto:
            trial.report(score, step=0)  # last: one that is killed half-way is done again

    def _same_preview(
        self, trial: optuna.Trial, weights: Mapping[str, float]
    ) -> FrozenTrial | None:
        """An earlier trial with a preview at exactly these weights, whoever made it, or None.

        The study's fingerprint says that posteriors, data and metrics are the same for all. A
        preview of a failed trial or a second seed is not taken: models leave it out, and would
        leave out the one that is taken from it.
        """
        wanted = [(of_task(WEIGHT, name), weights[name]) for name in self._names]
        first, weight = wanted[0]
        for other in trial.study.get_trials(deepcopy=False):
            known = other.user_attrs
            if known.get(first) != weight:  # of thousands nearly all
                continue
            same = all(known.get(key) == value for key, value in wanted)
            counts = other.state != TrialState.FAIL and REPEAT not in known
            if same and counts and other.number != trial.number and self._has_preview(other):
                return other
        return None

    def _truth(
        self, trial: optuna.Trial, weights: Mapping[str, float], *, is_baseline: bool
    ) -> float | tuple[float, ...]:
        reported = reported_steps(trial)
        repeat = int(trial.user_attrs.get(REPEAT, 0))
        started = time.perf_counter()

        def on_rung(step: int, metrics: Mapping[str, float]) -> None:
            if not is_running(trial.study, trial.number):
                raise TrialLostError(
                    f"trial {trial.number} was declared dead by another worker while this one was "
                    f"busy; its finetune goes on there from the last checkpoint"
                )
            if self._goal.is_pareto:
                return
            if step not in reported:
                trial.report(self._goal.score_of(metrics), step=step)  # may recover from NaN
            last = step == self._workbench.steps
            if not last and trial.should_prune() and not is_baseline:
                self._set_constraints(trial, metrics)
                raise optuna.TrialPruned(f"stopped at step {step} of {self._workbench.steps}")

        title = f"finetune {trial.number}" if self._progress else None
        try:
            truth = self._workbench.finetune(weights, on_rung, repeat=repeat, title=title)
            metrics = truth.values
            score = None if self._goal.is_pareto else self._score(metrics, "the finetune")
        except (optuna.TrialPruned, TrainingDivergedError, NotFiniteError):
            trial.set_user_attr(TRUTH_SECONDS, time.perf_counter() - started)  # it has cost
            raise
        attrs: dict[str, Any] = {of_task(TRUTH, name): _number(metrics[name]) for name in metrics}
        attrs |= {TRUTH_SECONDS: truth.seconds, TRUTH_REUSED: truth.reused}
        set_user_attrs(trial, attrs)
        self._set_constraints(trial, metrics)
        return self._goal.values_of(metrics) if score is None else score

    def _set_constraints(self, trial: optuna.Trial, metrics: Mapping[str, float | None]) -> None:
        if self._goal.limits is None:
            return
        numbers = {n: math.nan if value is None else value for n, value in metrics.items()}
        known = trial.constraints  # of a clone whose predecessor was killed just after this
        for name, value in self._goal.limits.values(numbers).items():
            trial.set_user_attr(CONSTRAINT.format(constraint=name), _number(value))
            if name not in known:
                trial.set_constraint(name, value)

    def _score(self, metrics: Mapping[str, float], what: str) -> float:
        """The score, seen to be a number to go on with."""
        score = self._goal.score_of(metrics)
        if not math.isfinite(score):
            raise NotFiniteError(f"the score of {what} is {score:g}, of the metrics {metrics}")
        return score


def _fail(trial: optuna.Trial, reason: str) -> float | tuple[float, ...]:
    _logger.warning("trial %d failed: %s", trial.number, reason)
    trial.set_user_attr(FAILURE, reason)
    n_objectives = len(trial.study.directions)
    return math.nan if n_objectives == 1 else (math.nan,) * n_objectives


def _number(value: float) -> float | None:
    """NaN is no JSON value that every database takes."""
    return value if math.isfinite(value) else None
