"""The objective: preview at step 0, and for what the pruner promotes, the real finetune."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import optuna

from optuna_merge._names import REFINED
from optuna_merge._optuna import (
    PROMOTED_FROM,
    is_running,
    latest_view,
    reported_steps,
    set_user_attrs,
)
from optuna_merge._tries import FAILURE, GIVEN_UP, TRIES
from optuna_merge._turns import models_turn
from optuna_merge.calibration import FAMILY_PREVIEWS
from optuna_merge.exceptions import (
    DefinitionMismatchError,
    NotFiniteError,
    OptunaMergeError,
    TrainingDivergedError,
    TrialLostError,
)
from optuna_merge.fitting import FittedStudy
from optuna_merge.previews import PartialPreview, Preview, Racing, RacingPreviewer, Refiner
from optuna_merge.pruners import (
    RACED_OUT,
    PromotionPruner,
    RaceBar,
    hand_over,
    preview_metrics,
    race_bar,
    should_prune,
)
from optuna_merge.roles import Role, check_role
from optuna_merge.study import BASELINE, FINGERPRINT, duplicate_baseline
from optuna_merge.tasks import Evaluation
from optuna_merge.tasks._evaluation import check_finite
from optuna_merge.weights import refused_params, suggest_weights

_logger = logging.getLogger(__name__)


class Objective:
    """An ordinary Optuna objective; use it with plain `study.optimize`.

    A trial suggests task weights, previews the merge at these weights and reports the preview
    score at step 0. If the study's pruner then says so, the trial ends as PRUNED; else the model
    is really finetuned at the weights, which reports the score at the rungs' training steps, and
    the final score on validation data is the trial's value.

    With a refinement, a promoted trial is first trained for a few steps from the merge and reports
    the score at these steps (`refined_<step>_<task>` are user attributes), each with a gate of the
    pruner behind it; the finetune's own rungs are reported at steps after the last of them.

    In a Pareto study nothing is reported, as Optuna reports in studies of one objective only: the
    preview is the user attributes `preview_<task>`, a finetune has no rungs, and the values are
    the tasks' metrics.

    Where the definition compares posterior families, each of them previews a truth's weights, too:
    the user attribute `family_previews` has their scores and metrics, the study's own first.

    A definition's constraints are set on each trial when it ends, by its truth or else by its
    preview, and mirrored as user attributes `constraint_<name>` (0 or less is feasible).

    With `study.optimize(..., n_jobs=...)` threads take turns at the model, so that every number is
    what one thread alone would have found; to go faster, start several processes.

    A trial that cannot be finished (training diverged, a metric or the score of its preview or
    truth is NaN or infinite, another worker has the same promotion) ends as FAIL with the reason
    in the user attribute `failure`, by returning NaN. So does one that was enqueued with
    parameters that are no weights: a value outside of [0, 1], or a name that is no task's.

    With `racing`, a preview stops when it can't reach the promotion threshold of the study's
    `PromotionPruner` any more (see `race_bar`; under other pruners nothing is raced). Such a trial
    is PRUNED without a value at step 0. It is no candidate for promotion, and its numbers are kept
    apart: `partial_preview_<task>` and `partial_preview_<task>_se` are estimates of what a full
    preview would say, `preview_examples` is the share of examples that was evaluated,
    `raced_out_by` the trial at the bar.

    Args:
        fitted: Task runs and posteriors, from `fit`.
        racing: When to give a preview up; None: never. Baselines are never raced, nor are the
            previews of `preview_many`.
        progress: Show a progress bar for every finetune.
        role: With "preview", what is promoted is queued as a copy for other workers, and the trial
            ends as PRUNED. Give `run_trials` the same role: plain `study.optimize` would hand
            promoted copies and baselines to this worker.

    Raises:
        ValueError: an unknown role; or `racing`, and a task's metric is no mean over examples, the
            study has constraints or several objectives, or the model re-estimates batch norms.
    """

    def __init__(
        self,
        fitted: FittedStudy,
        *,
        racing: Racing | None = None,
        progress: bool = True,
        role: Role = "any",
    ) -> None:
        self._fitted = fitted
        self._role = check_role(role)
        self._racing = racing
        self._racer: RacingPreviewer | None = None
        obstacle = None if racing is None else fitted.definition.racing_obstacle
        if obstacle is not None:
            raise ValueError(obstacle)
        if racing is not None:
            self._racer = RacingPreviewer(
                fitted.previewer,
                fitted.scores,
                maximize=fitted.definition.direction == "maximize",
                racing=racing,
            )
        self._progress = progress
        self._names = fitted.definition.names
        self._preview_keys = [
            key
            for name in self._names
            for key in (f"weight_{name}", f"preview_{name}_se", f"preview_{name}")
        ]
        self._is_pareto = fitted.definition.is_pareto
        self._limits = fitted.constraints

    def __call__(self, trial: optuna.Trial) -> float | tuple[float, ...]:
        self._check_definition(trial.study)
        if self._role == "preview" and {BASELINE, PROMOTED_FROM} & trial.user_attrs.keys():
            raise OptunaMergeError(
                f"trial {trial.number} is to be finetuned, but this worker only previews; run it "
                f"with run_trials(study, objective, role='preview', ...)"
            )
        refused = refused_params(latest_view(trial), self._names)
        if refused is not None:  # before it takes them: no reader will stumble over it
            tries = int(trial.user_attrs.get(TRIES, 0)) + 1
            set_user_attrs(trial, {TRIES: tries, GIVEN_UP: True})
            return _fail(trial, refused)
        weights = suggest_weights(trial, self._names)
        failure = self._superfluous(trial)
        if failure is not None:
            return _fail(trial, failure)
        preview = None
        if not self._has_preview(latest_view(trial)) and RACED_OUT not in trial.user_attrs:
            try:
                preview = self._preview(trial, weights)
            except NotFiniteError as error:
                return _lost(trial, error)
        if RACED_OUT in trial.user_attrs:
            trial.should_prune()  # its preview counts, so that another may be promoted now
            raise optuna.TrialPruned("the preview cannot reach the promotion threshold")
        baseline = trial.user_attrs.get(BASELINE)
        promoted = not should_prune(trial) or baseline is not None
        if not promoted or self._role == "preview":
            seen = {name: trial.user_attrs[f"preview_{name}"] for name in self._names}
            self._set_constraints(trial, seen)
            if promoted:
                hand_over(trial)
            raise optuna.TrialPruned("left to other workers" if promoted else "not promoted")
        try:
            if self._fitted.refiner is not None and max(weights.values()) < 1.0:
                self._refine(trial, weights, self._fitted.refiner, preview)
            return self._truth(trial, weights, is_baseline=baseline is not None)
        except (TrainingDivergedError, NotFiniteError) as error:
            return _lost(trial, error)

    def preview_many(self, trials: Sequence[optuna.Trial]) -> None:
        """Preview several asked trials at once, faster where the body is small.

        For ask-and-tell; the objective then goes on from the previews:

            trials = [study.ask() for _ in range(16)]
            objective.preview_many(trials)
            for trial in trials:
                try:
                    study.tell(trial, objective(trial))
                except optuna.TrialPruned:
                    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        """
        fresh = []
        for trial in trials:
            self._check_definition(trial.study)
            if refused_params(latest_view(trial), self._names) is not None:
                continue  # the objective says why
            weights = suggest_weights(trial, self._names)
            if not self._has_preview(latest_view(trial)):
                fresh.append((trial, weights))
        previews = self._fitted.previewer.many([weights for _, weights in fresh])
        for (trial, weights), preview in zip(fresh, previews):
            with suppress(NotFiniteError):  # the objective makes it again, and says why
                self._preview(trial, weights, preview)

    def _has_preview(self, trial: optuna.trial.FrozenTrial) -> bool:
        if self._is_pareto:
            return preview_metrics(self._names)(trial) is not None
        return 0 in trial.intermediate_values

    def _preview(
        self, trial: optuna.Trial, weights: Mapping[str, float], preview: Preview | None = None
    ) -> Preview | None:
        """Record the preview; return it, unless it was taken from another trial or raced out."""
        twin = None if preview is not None else self._same_preview(trial, weights)
        if twin is None:
            found = preview or self._made_preview(trial, weights)
            if found is None:
                return None
            preview = found
            self._check_finite(preview.evaluations, "the merge")
            attrs: dict[str, Any] = {"preview_seconds": preview.seconds}
            for name in self._names:
                metric = preview.evaluations[name].metric
                attrs[f"weight_{name}"] = weights[name]
                attrs[f"preview_{name}_se"] = _number(metric.standard_error)
            for name in self._names:
                attrs[f"preview_{name}"] = _number(preview.evaluations[name].metric.value)
        else:
            attrs = {"preview_seconds": 0.0, "preview_taken_from": twin.number}
            attrs |= {key: twin.user_attrs[key] for key in self._preview_keys}
        set_user_attrs(trial, attrs)
        # Last: a preview that is killed half-way has no step 0 and is done again. (In a Pareto
        # study it lacks some task's metric, which were written last.)
        if self._is_pareto:
            return preview
        if twin is not None:
            trial.report(twin.intermediate_values[0], step=0)
        else:
            assert preview is not None
            trial.report(self._score(preview.evaluations), step=0)
        return preview

    def _made_preview(self, trial: optuna.Trial, weights: Mapping[str, float]) -> Preview | None:
        """The full preview; None when it was raced out, which the trial's attributes then say."""
        if self._racer is None:
            return self._fitted.previewer(weights)
        bar = self._bar(trial)
        if bar is None:
            return self._racer(weights)
        references = [
            {name: reference.user_attrs[f"weight_{name}"] for name in self._names}
            for reference in bar.references
        ]
        found = self._racer.race(weights, bar.score, references)
        if isinstance(found, Preview):
            return found
        self._record_partial(trial, found, bar.trial.number)
        return None

    def _bar(self, trial: optuna.Trial) -> RaceBar | None:
        """What this trial's preview is raced against, or None."""
        pruner = trial.study.pruner
        if self._racing is None or BASELINE in trial.user_attrs:
            return None
        if not isinstance(pruner, PromotionPruner):
            return None
        return race_bar(
            trial.study.get_trials(deepcopy=False),
            pruner.preview_budget(trial.study),
            slack=self._racing.slack,
            maximize=self._fitted.definition.direction == "maximize",
            tasks=self._names,
        )

    def _record_partial(self, trial: optuna.Trial, found: PartialPreview, bar: int) -> None:
        attrs: dict[str, Any] = {
            "preview_examples": found.fraction,
            "partial_preview_seconds": found.seconds,
        }
        for name in self._names:
            metric = found.metrics[name]
            attrs[f"weight_{name}"] = found.weights[name]
            attrs[f"partial_preview_{name}"] = _number(metric.value)
            attrs[f"partial_preview_{name}_se"] = _number(metric.standard_error)
        set_user_attrs(trial, attrs)
        # Last: with it the trial is raced out, also for a retry.
        trial.set_user_attr(RACED_OUT, bar)

    def _same_preview(self, trial: optuna.Trial, weights: Mapping[str, float]) -> Any:
        """An earlier trial with a preview at exactly these weights, whoever made it, or None.

        The study's fingerprint says that posteriors, data and metrics are the same for all.
        """
        (first, its_weight), *wanted = [(f"weight_{name}", weights[name]) for name in self._names]
        for other in trial.study.get_trials(deepcopy=False):
            attrs = other.user_attrs
            if (
                attrs.get(first) == its_weight  # of thousands hardly one: no loop for the others
                and all(attrs.get(key) == weight for key, weight in wanted)
                and other.number != trial.number
                and self._has_preview(other)
            ):
                return other
        return None

    def _refine(
        self,
        trial: optuna.Trial,
        weights: Mapping[str, float],
        refiner: Refiner,
        preview: Preview | None,
    ) -> None:
        """Report the refined previews; ends the trial where it is not promoted any further."""
        steps = self._fitted.definition.refinement_steps
        reported = reported_steps(trial)
        if reported.issuperset(steps):
            return  # a copy or a clone that has passed the last gate

        def on_rung(step: int, evaluations: dict[str, Evaluation]) -> None:
            _fence(trial)
            self._check_finite(evaluations, f"the merge after {step} steps of training")
            if step not in reported:
                refined = {
                    REFINED.format(step=step, task=name): _number(evaluations[name].metric.value)
                    for name in self._names
                }
                set_user_attrs(trial, refined)
                trial.report(self._score(evaluations), step=step)
            if trial.should_prune() and BASELINE not in trial.user_attrs:
                self._set_constraints(trial, {n: e.metric.value for n, e in evaluations.items()})
                raise optuna.TrialPruned(f"not promoted beyond {step} steps from the merge")

        started = time.perf_counter()
        title = f"refine {trial.number}" if self._progress else None
        try:
            refiner(weights, preview=preview, on_rung=on_rung, progress=title)
        except optuna.TrialPruned:
            trial.set_user_attr("refinement_seconds", time.perf_counter() - started)
            raise
        # Not for a trial that was lost: another worker's now, it takes no attributes any more.
        trial.set_user_attr("refinement_seconds", time.perf_counter() - started)

    def _truth(
        self, trial: optuna.Trial, weights: Mapping[str, float], *, is_baseline: bool
    ) -> float | tuple[float, ...]:
        fitted, settings = self._fitted, self._fitted.definition.finetuning
        reported = reported_steps(trial)
        # Steps of the trial: those of its refinements come before.
        before = max(fitted.definition.refinement_steps, default=0)
        started = time.perf_counter()

        def on_rung(step: int, evaluations: dict[str, Evaluation]) -> None:
            _fence(trial)
            if before + step not in reported and not self._is_pareto:
                trial.report(self._score(evaluations), step=before + step)
            last = step == settings.steps or self._is_pareto
            if not last and trial.should_prune() and not is_baseline:
                self._set_constraints(trial, {n: e.metric.value for n, e in evaluations.items()})
                raise optuna.TrialPruned(f"stopped at step {step} of {settings.steps}")

        title = f"finetune {trial.number}" if self._progress else None
        try:
            with models_turn():
                fitted.previewer.release()  # their memory on the device is the finetune's now
                run = fitted.store.run(
                    fitted.model,
                    fitted.tasks,
                    weights,
                    settings,
                    start=fitted.start(weights),
                    on_rung=on_rung,
                    progress=title,
                )
        except optuna.TrialPruned:
            trial.set_user_attr("truth_seconds", time.perf_counter() - started)
            raise
        self._check_finite(run.evaluations, "the finetune")
        metrics = {name: run.evaluations[name].metric.value for name in self._names}
        self._compare_families(trial, weights)
        attrs: dict[str, Any] = {f"truth_{name}": _number(v) for name, v in metrics.items()}
        attrs |= {"truth_seconds": run.seconds, "truth_reused": run.reused}
        set_user_attrs(trial, attrs)
        self._set_constraints(trial, metrics)
        return fitted.values(metrics) if self._is_pareto else fitted.score(metrics)

    def _compare_families(self, trial: optuna.Trial, weights: Mapping[str, float]) -> None:
        """Note what each family would have previewed. A task alone is what all merges give."""
        if not self._fitted.compared or max(weights.values()) == 1.0:
            return
        started = time.perf_counter()
        metrics = {n: _nan(trial.user_attrs[f"preview_{n}"]) for n in self._names}
        found = {self._fitted.definition.posterior.label: self._family_preview(metrics)}
        for label, previewer in self._fitted.compared.items():
            evaluations = previewer(weights).evaluations
            previewer.release()
            metrics = {name: evaluations[name].metric.value for name in self._names}
            found[label] = self._family_preview(metrics)
        trial.set_user_attr(FAMILY_PREVIEWS, found)
        trial.set_user_attr(f"{FAMILY_PREVIEWS}_seconds", time.perf_counter() - started)

    def _family_preview(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        return {
            "score": None if self._is_pareto else _number(self._fitted.score(metrics)),
            "metrics": {name: _number(value) for name, value in metrics.items()},
        }

    def _set_constraints(self, trial: optuna.Trial, metrics: Mapping[str, float | None]) -> None:
        if self._limits is None:
            return
        numbers = {n: _nan(value) for n, value in metrics.items()}
        known = trial.constraints  # of a clone whose predecessor was killed just after this
        for name, value in self._limits.values(numbers).items():
            trial.set_user_attr(f"constraint_{name}", _number(value))
            if name not in known:
                trial.set_constraint(name, value)

    def _score(self, evaluations: Mapping[str, Evaluation]) -> float:
        return self._fitted.score({name: e.metric.value for name, e in evaluations.items()})

    def _check_finite(self, evaluations: Mapping[str, Evaluation], what: str) -> None:
        """Raise `NotFiniteError` unless metrics and score are numbers to go on with."""
        check_finite(evaluations, what)
        score = 0.0 if self._is_pareto else self._score(evaluations)
        if not math.isfinite(score):
            metrics = {name: e.metric.value for name, e in evaluations.items()}
            raise NotFiniteError(f"the score of {what} is {score:g}, of the metrics {metrics}")

    def _superfluous(self, trial: optuna.Trial) -> str | None:
        """Why this trial must not run, or None. (Of twice promoted ones the pruner sees to it.)"""
        if BASELINE not in trial.user_attrs:
            return None
        trials = trial.study.get_trials(deepcopy=False)
        twin = duplicate_baseline(trials, trials[trial.number])
        return None if twin is None else f"duplicate baseline: trial {twin} has it"

    def _check_definition(self, study: optuna.Study) -> None:
        found = study.user_attrs.get(FINGERPRINT)
        if found != self._fitted.fingerprint:
            raise DefinitionMismatchError(
                f"study {study.study_name!r} was not prepared for this objective (its definition "
                f"is {found}, the objective's {self._fitted.fingerprint}); call "
                f"prepare_study(study, fitted) first"
            )


def _fence(trial: optuna.Trial) -> None:
    if not is_running(trial.study, trial.number):
        raise TrialLostError(
            f"trial {trial.number} was declared dead by another worker while this one was busy; "
            f"its finetune goes on there from the last checkpoint"
        )


def _fail(trial: optuna.Trial, reason: str) -> float | tuple[float, ...]:
    _logger.warning("trial %d failed: %s", trial.number, reason)
    trial.set_user_attr(FAILURE, reason)
    n_objectives = len(trial.study.directions)
    return math.nan if n_objectives == 1 else (math.nan,) * n_objectives


def _lost(trial: optuna.Trial, error: Exception) -> float | tuple[float, ...]:
    trial.set_user_attr(TRIES, int(trial.user_attrs.get(TRIES, 0)) + 1)
    return _fail(trial, str(error))


def _number(value: float) -> float | None:
    """NaN is no JSON value that every database takes."""
    return value if math.isfinite(value) else None


def _nan(value: float | None) -> float:
    """Back from `_number`."""
    return math.nan if value is None else value
