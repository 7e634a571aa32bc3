"""`PromotionPruner`: of many previews, finetune the most promising ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import optuna
from optuna.pruners import BasePruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_merge.pruners._budget import FRACTION, WARMUP, Budget
from optuna_merge.pruners._decision import Order, decide, duplicate_promotion, is_over_budget
from optuna_merge.pruners._ledger import Candidate, Ledger
from optuna_merge.pruners._pacing import is_time
from optuna_merge.pruners._prospect import reason_to_stop
from optuna_merge.pruners._second_seeds import queue_second_seeds, second_seeds_left
from optuna_merge.pruners._truth_order import most_promising_previews, most_promising_truths
from optuna_merge.surrogate import Aim
from optuna_merge.trials import (
    BASELINE,
    BEGUN,
    PROMOTED_FROM,
    PROMOTION,
    QUEUED,
    RUN,
    WITHDRAWN,
    History,
    Spending,
    TrialReader,
    finetune_steps,
    has_preview_runs,
    latest_view,
    lineage,
    read_trial,
    reference_point,
    retry_history,
    set_trial_user_attr,
    spending,
    study_costs,
    task_directions,
    task_names,
)

_logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float64]


class _Now(NamedTuple):
    """A study as its trials are now, and the budget that holds for it."""

    trials: list[FrozenTrial]
    history: History
    ledger: Ledger
    budget: Budget
    spent: Spending


class PromotionPruner(BasePruner):
    """End every trial with its preview, and queue copies of those that are worth a real finetune.

    A trial reports its preview (the score of a merge) at step 0 and asks `should_prune`; there it
    ends. When a finetune is due, the pruner promotes the most promising preview of the whole study
    that was not promoted yet: it queues a copy of that trial (WAITING, with the trial's
    parameters, user attributes and preview, and with the user attribute `promoted_from`). The copy
    is executed before any new trial and is not pruned, so it is finetuned. Trials with the user
    attribute `baseline` are never pruned, and count neither as previews nor as promotions; a
    preview and its retries count once.

    A finetune is due when no further preview is expected to add four times its price to the
    expected improvement of the next finetune, or when the previews since the last promotion have
    cost a fourth of a finetune. The price is the ratio of the seconds that previews and finetunes
    have taken so far, 1/10 while unknown. Nothing is promoted while a copy waits. With a
    `fraction`, floor(fraction x previews) finetunes are due instead. A fraction of a fourth also
    holds in studies of one task, and in studies that a worker has previewed in by that role alone.

    The most promising preview has the largest expected improvement of the truth, by the same
    models as in `PreviewSampler`; before there are two truths (baselines count) it is the best
    preview. While eight truths or more show no correlation with their previews, every
    fourth promotion goes to the preview whose truth is least certain, and a warning is logged.

    The decision is a pure function of the study's trials and the seed
    (`optuna_merge.pruners.decide`). Several workers together never pass the budget and finetune
    nothing twice: a copy that comes too late, or is the second of one preview, withdraws.

    In a study with several objectives, one per task, the preview is in the user attributes
    `preview_<task>`, and the most promising one has the largest expected hypervolume improvement
    of the truths. `Trial.should_prune` doesn't work in such studies: ask
    `optuna_merge.pruners.should_prune`.

    Args:
        fraction: Promotions per preview, in [0, 1]; with 0 only baselines are finetuned. None: a
            promotion is due when another preview is not worth its price, see above.
        max_promotions: Cap on the promotions of the whole study, whatever becomes of them; None
            for none.
        warmup: Number of previews before anything is promoted; None: 8 with a fraction, else as
            many as `PreviewSampler` has in its design.
        score: How the study's value follows from the tasks' metrics, as for `PreviewSampler`.
        constraints: Constraints on the tasks' true metrics, as for `PreviewSampler`.
        budget: Cap on the cost of the whole study, in units of a finetune at uniform weights: task
            runs, posteriors, previews, baselines and promoted finetunes, by the seconds that they
            took (or by training steps if the seconds are not known). Another finetune begins if at
            least half of it fits. None for no cap.
        second_seeds: How many of the last finetunes under a cap repeat the best weights with a
            second seed, at most a third of all promotions. They are queued trials with the user
            attribute `repeat`, which the objective has to heed. Without a cap there is no last
            finetune, and so no repeat.
        stop_when_flat: Whether `stop_reason` gives a reason if the best weights and one more
            finetune are together expected to gain less than half the noise of one finetune over
            uniform weights.
        until: A share of the noise of one finetune. `stop_reason` gives a reason if another
            finetune is expected to improve on the best by less than this; None for never.
        seed: Seed of the draw between models that trust the previews and models that don't; None
            is 0. Workers with equal seeds decide alike.

    Raises:
        ValueError: an argument is out of its range.
        TypeError: `score` or `constraints` is no function.

    Examples:
        The most promising eighth of all previews is finetuned:

        >>> from optuna_merge.samplers import PreviewSampler
        >>> tasks = ["news", "reviews"]
        >>> def objective(trial):
        ...     w_news, w_reviews = (trial.suggest_float(f"w_{task}", 0, 1) for task in tasks)
        ...     preview = 0.8 - (w_news / (w_news + w_reviews) - 0.6) ** 2
        ...     if "promoted_from" not in trial.user_attrs:
        ...         trial.report(preview, step=0)
        ...     if trial.should_prune():
        ...         raise optuna.TrialPruned
        ...     return preview + 0.1  # what a finetune would give
        >>> study = optuna.create_study(
        ...     direction="maximize",
        ...     sampler=PreviewSampler(tasks, seed=0),
        ...     pruner=PromotionPruner(fraction=0.125, seed=0),
        ... )
        >>> study.optimize(objective, n_trials=18)
        >>> len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE]))
        2
        >>> round(study.best_value, 2)
        0.9
    """

    def __init__(
        self,
        *,
        fraction: float | None = None,
        max_promotions: int | None = None,
        warmup: int | None = None,
        score: Callable[[Array], Array] | None = None,
        constraints: Callable[[Array], Array] | None = None,
        budget: float | None = None,
        second_seeds: int = 0,
        stop_when_flat: bool = False,
        until: float | None = None,
        seed: int | None = None,
    ) -> None:
        for name, function in (("score", score), ("constraints", constraints)):
            if function is not None and not callable(function):
                raise TypeError(
                    f"{name} is {type(function).__name__}, expected a function or None"
                )
        self._budget = Budget(
            FRACTION if fraction is None else fraction,
            max_promotions,
            WARMUP if warmup is None else warmup,
            budget,
        )
        self._paced = None
        if fraction is None:
            self._paced = replace(self._budget, fraction=None, warmup=warmup or 0)
        if second_seeds < 0:
            raise ValueError(f"second_seeds is {second_seeds}, expected a number, 0 or more")
        if until is not None and not until > 0:  # also refuses NaN
            raise ValueError(
                f"until is {until}, expected a share of a finetune's noise above 0, such as 0.25, "
                f"or None"
            )
        self._second_seeds = second_seeds
        self._when_flat, self._until = stop_when_flat, until
        self._judged: tuple[tuple[str, int] | None, str | None] = (None, None)
        self._score, self._constraints = score, constraints
        self._seed = seed or 0
        self._reader = TrialReader(())

    @property
    def budget(self) -> float | None:
        """What the whole study may cost, in finetunes; None for no cap."""
        return self._budget.finetunes

    def is_spent(self, study: Study) -> bool:
        """Whether the caps let nothing more be finetuned, however many previews come."""
        now = self._read(study)
        return now.budget.is_spent(now.ledger)

    def stop_reason(self, study: Study) -> str | None:
        """Why the search is to stop now, in words; None: it goes on.

        It is for whoever runs trials: `Objective` asks it after a preview and calls
        `study.stop()`, and `run_trials` ends.
        """
        if self.budget is not None:
            now = self._read(study)
            busy = now.ledger.under_way or now.ledger.baselines_under_way
            if not busy and now.budget.fitting(now.ledger, now.ledger.claims) < 1:
                return f"the budget of {self.budget:g} finetunes is spent ({now.spent.told})"
        # Asked anew where there are other truths: previews alone are no reason to stop.
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        key = (study.study_name, len(trials))
        if self._judged[0] != key:
            aim = self._aim(study, task_names(study, study.get_trials(deepcopy=False)))
            self._judged = (key, reason_to_stop(study, self._when_flat, self._until, aim))
        return self._judged[1]

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial ends here; see the class. Called by `Trial.should_prune`."""
        if BASELINE in trial.user_attrs:
            return False
        if PROMOTED_FROM in trial.user_attrs or PROMOTION in trial.user_attrs:
            return self._prune_copy(study, trial)
        several = len(study.directions) > 1
        seen = read_trial(trial, task_names(study) if several else ())
        if seen.last_step > 0 or not (seen.noted if several else seen.reported):
            return False
        self._fill(study)
        return True

    def _prune_copy(self, study: Study, trial: FrozenTrial) -> bool:
        stage = trial.user_attrs.get(PROMOTION)
        if stage == WITHDRAWN:  # a worker may have died between that and filling the slot
            self._fill(study)
            return True
        if stage == BEGUN and not retry_history(trial):
            return False
        now = self._read(study)
        copy = next(r for r in now.history.records if r.number == trial.number)
        twin = duplicate_promotion(now.history.records, copy)
        if twin is not None:
            _logger.info("Trial %d repeats the promotion %d.", trial.number, twin)
        over = stage != BEGUN and is_over_budget(now.ledger, copy, now.budget)
        # From here on a copy that has begun stands, whatever claims others write for a moment.
        withdrawn = twin is not None or over
        set_trial_user_attr(study, trial, PROMOTION, WITHDRAWN if withdrawn else BEGUN)
        if withdrawn:
            self._fill(study)
        return withdrawn

    def _fill(self, study: Study) -> None:
        """Queue copies for all free slots, the best one first: they are executed in this order."""
        now = self._read(study)
        kept = self._kept(study, now)
        if kept and kept == now.budget.left(now.ledger):
            if queue_second_seeds(study, *now[:4], kept):
                return
            kept = 0  # there is nothing to repeat
        aim = self._aim(study, now.history.tasks)
        if now.budget.is_automatic:
            if not now.budget.free(now.ledger, now.ledger.claims):
                return
            if not is_time(now.ledger, now.history, aim, seed=self._seed):
                return
        by_number = {trial.number: trial for trial in now.trials}
        for candidate in decide(now.ledger, now.budget, self._order(now, aim), kept):
            study.add_trial(_promoted_copy(by_number[candidate.number]))
            _logger.info("The preview of trial %d is promoted.", candidate.number)

    def queue_second_seeds(self, study: Study) -> None:
        """Queue the second seeds of the best weights, if nothing else is left to finetune.

        What a preview does as it ends; for whoever runs trials where no previews come any more.
        """
        if self._second_seeds:
            now = self._read(study)
            kept = self._kept(study, now)
            if kept and kept == now.budget.left(now.ledger):
                queue_second_seeds(study, *now[:4], kept)

    def _kept(self, study: Study, now: _Now) -> int:
        """How many of the finetunes that are left are for second seeds."""
        if not self._second_seeds or len(study.directions) > 1:
            return 0
        return second_seeds_left(now.ledger, now.budget, self._second_seeds)

    def _read(self, study: Study) -> _Now:
        trials = study.get_trials(deepcopy=False)
        tasks = task_names(study, trials)
        if self._reader.tasks != tasks:
            self._reader = TrialReader(tasks)
        history = self._reader.read(study.study_name, trials)
        spent = spending(history.records, study_costs(study), len(tasks), finetune_steps(study))
        several = len(study.directions) > 1
        ledger = Ledger.of(history.records, several=several, spent=spent.total)
        budget = self._budget
        # Without weights there is nothing to compare, and who only previews can't wait for truths.
        if self._paced is not None and len(tasks) > 1 and not has_preview_runs(study):
            budget = self._paced
        return _Now(trials, history, ledger, budget, spent)

    def _order(self, now: _Now, aim: Aim) -> Order:
        def order(candidates: Sequence[Candidate]) -> Iterable[Candidate]:
            if len(candidates) < 2 or len(now.history.tasks) < 2:
                return most_promising_previews(aim, now.history)(candidates)
            n_promoted = len(now.ledger.claims)
            return most_promising_truths(
                candidates, now.history, aim=aim, n_promoted=n_promoted, seed=self._seed
            )

        return order

    def _aim(self, study: Study, tasks: Sequence[str]) -> Aim:
        return Aim(
            tuple(d == StudyDirection.MAXIMIZE for d in study.directions),
            self._score,
            self._constraints,
            reference_point(study, tasks) if len(study.directions) > 1 else None,
            tuple(task_directions(study, tasks).values()),
        )


def stop_reason(study: Study) -> str | None:
    """Why the study's `PromotionPruner` wants the search to stop, or None."""
    pruner = study.pruner
    return pruner.stop_reason(study) if isinstance(pruner, PromotionPruner) else None


def should_prune(trial: optuna.Trial) -> bool:
    """`trial.should_prune()`, also in studies of several objectives, where Optuna has none.

    Only pruners that need no reported values, as `PromotionPruner` does, prune there.
    """
    if len(trial.study.directions) == 1:
        return trial.should_prune()
    return trial.study.pruner.prune(trial.study, latest_view(trial))


def _promoted_copy(trial: FrozenTrial) -> FrozenTrial:
    # System attributes stay behind: constraints, for one, are those of the preview, and Optuna
    # would ignore the ones that the finetune sets.
    attrs = {key: value for key, value in trial.user_attrs.items() if key != RUN}
    return optuna.trial.create_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        intermediate_values=trial.intermediate_values,
        user_attrs=attrs | {PROMOTED_FROM: lineage(trial), PROMOTION: QUEUED},
    )
