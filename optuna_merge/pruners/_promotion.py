"""`PromotionPruner`: of many previews, finetune the most promising ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

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
from optuna_merge.pruners._second_seeds import queue_second_seeds, second_seeds_left
from optuna_merge.pruners._stopping import Stopping
from optuna_merge.pruners._truth_order import (
    Aim,
    most_promising_previews,
    most_promising_truths,
)
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
    task_names,
)

_logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float64]


class PromotionPruner(BasePruner):
    """End every trial with its preview, and queue copies of those that are worth a real finetune.

    A trial reports its preview (the score of a merge) at step 0 and asks `should_prune`; there it
    ends. When a finetune is due, the pruner promotes the most promising preview of the whole study
    that was not promoted yet: it queues a copy of that trial. The copy is WAITING, with the
    trial's parameters, its user attributes, its preview at step 0 and the user attribute
    `promoted_from`. It is executed before any new trial and is not pruned, so it is finetuned and
    its value is the truth. Because all previews are compared at that moment, none is promoted only
    for having been good when it was made, and none is lost for having come too early.

    By default a finetune is due as soon as no further preview is expected to be worth its price,
    or when the previews since the last promotion have together cost a fourth of a finetune. A
    preview is worth what it is expected to add to the expected improvement of the next finetune
    (see below). Its price is four times the ratio of the seconds that previews and finetunes have
    taken so far (1/10 while that is not known). So many previews come before the first promotion
    if previews tell much and cost little, and few if the truths have shown that previews tell
    nothing. Finetunes under way count as pending, and nothing is promoted while a copy waits that
    no worker has begun: a second finetune is chosen from the same truths only if another worker is
    idle.

    With a `fraction`, floor(fraction x previews) promotions are due instead. A fraction of a
    fourth also holds in studies of one task, and while workers have the role to preview only.

    The most promising preview is the one with the largest expected improvement of the truth, by
    the same models as in `PreviewSampler`. Before there are two truths (baselines count) it is the
    best preview. While eight truths or more show no correlation with their previews, every fourth
    promotion goes to the preview whose truth is least certain, and a warning is logged.
    `optuna-merge diagnose` shows how true the previews are.

    The decision is a pure function of the study's trials and the seed
    (`optuna_merge.pruners.decide`).

    What counts:
        - Trials with the user attribute `baseline` are never pruned and count neither as previews
          nor as promotions.
        - A preview and its retry clones count once; failed trials are no previews.
        - A promotion counts once its copy is queued, whatever becomes of it: the budget counts
          finetunes begun.
        - A preview that is NaN or infinite counts as a preview, but is never promoted.
        - Ties go to the better preview, then to the lower trial number.

    Several workers together never pass the budget and finetune nothing twice. Copies come in the
    order of their trial numbers. A copy that comes too late, or is the second of one preview,
    withdraws: it is pruned when it asks first, its user attribute `promotion` becomes "withdrawn",
    and another preview may be promoted in its place. The attribute of a copy that is finetuned
    becomes "begun".

    In a study with several objectives, one per task, the preview is in the user attributes
    `preview_<task>`. The most promising preview has the largest expected hypervolume improvement
    of the truths; before there are two truths, previews are ordered by non-domination rank, then
    by their hypervolume. `Trial.should_prune` doesn't work in such studies: ask
    `optuna_merge.pruners.should_prune`.

    `max_promotions`, `max_steps` and `max_seconds` count promotions only, not the baselines. With
    a cap of zero nothing is promoted, and copies that are queued already are not finetuned. A copy
    has its preview already; if it reports the preview again, Optuna keeps the first value and
    warns.

    Args:
        fraction: Promotions per preview, in [0, 1]; with 0 only baselines are finetuned. None: a
            promotion is due when another preview is not worth its price, see above.
        max_promotions: Cap on the promotions of the whole study; None for none.
        warmup: Number of previews before anything is promoted; None: 8 with a fraction, else as
            many as `PreviewSampler` has in its design.
        max_steps: Cap on the training steps of all promoted finetunes together; None for none. A
            promotion reserves the steps of a complete finetune; a finetune that is pruned at a
            rung gives back the steps that it did not use. The cap is never passed.
        max_seconds: Cap on the seconds of all promoted finetunes together; None for none. A
            finetune under way counts as long as the longest one so far, so only a finetune that
            takes longer than all before it passes the cap. Until the first one has ended,
            finetunes run one at a time.
        finetune_steps: Training steps of one finetune, for `max_steps`; None: as in the study's
            definition.
        score: How the study's value follows from the tasks' metrics, as for `PreviewSampler`: a
            function from an array of metrics `... x T` to an array `...`. If it is given, and the
            trials have the user attributes `preview_<task>` and `truth_<task>`, each task's metric
            has its own model.
        constraints: Constraints on the tasks' true metrics, as for `PreviewSampler`. Promising
            weights are then those that may be feasible and better than the best feasible truth.
        budget: Cap on the cost of the whole study, in units of a finetune at uniform weights: task
            runs, posteriors, previews, baselines and promoted finetunes, by the seconds that they
            took (or by training steps if the seconds are not known). Another finetune begins if at
            least half of it fits; otherwise `stop_reason` says that the budget is spent. None for
            no cap.
        second_seeds: How many of the last finetunes under a cap repeat the best weights with a
            second seed, at most a third of all promotions. They are queued trials with the user
            attribute `repeat`, which the objective has to heed. Without a cap there is no last
            finetune, and so no repeat.
        stop_when_flat: Whether `stop_reason` gives a reason if the score is flat: if the best
            weights and one more finetune are together expected to gain less than half the noise of
            one finetune over uniform weights.
        until: A share of the noise of one finetune. `stop_reason` gives a reason if another
            finetune is expected to improve on the best by less than this; None for never.
        seed: Seed of the draw between models that trust the previews and models that don't; None
            is 0. Workers with equal seeds decide alike. With different seeds two workers may queue
            different copies for one promotion, of which the later withdraws.

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
        max_steps: int | None = None,
        max_seconds: float | None = None,
        finetune_steps: int | None = None,
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
            fraction=FRACTION if fraction is None else fraction,
            max_promotions=max_promotions,
            warmup=WARMUP if warmup is None else warmup,
            max_steps=max_steps,
            max_seconds=max_seconds,
            finetune_steps=finetune_steps,
            finetunes=budget,
        )
        self._paced = None
        if fraction is None:
            self._paced = replace(self._budget, fraction=None, warmup=warmup or 0)
        if second_seeds < 0:
            raise ValueError(f"second_seeds is {second_seeds}, expected a number, 0 or more")
        self._second_seeds = second_seeds
        self._stopping = Stopping(stop_when_flat, until)
        self._judged: tuple[tuple[str, int] | None, str | None] = (None, None)
        self._score, self._constraints = score, constraints
        self._seed = seed or 0
        self._reader = TrialReader(())

    def is_spent(self, study: Study) -> bool:
        """Whether the caps let nothing more be finetuned, however many previews come."""
        history = self._read(study, study.get_trials(deepcopy=False))
        return self._budget_of(study, history).is_spent(self._ledger(study, history))

    def stop_reason(self, study: Study) -> str | None:
        """Why the search is to stop now, in words; None: it goes on.

        It is for whoever runs trials: `Objective` asks it after a finetune and calls
        `study.stop()`, and `run_trials` ends.
        """
        trials = study.get_trials(deepcopy=False)
        if self._budget.finetunes is not None:
            history = self._read(study, trials)
            ledger = self._ledger(study, history)
            busy = ledger.under_way or ledger.baselines_under_way
            if not busy and self._budget.fitting(ledger, ledger.claims) < 1:
                told = self._spending(study, history).told
                return f"the budget of {self._budget.finetunes:g} finetunes is spent ({told})"
        # Asked anew where there are other truths: previews alone are no reason to stop.
        key = (study.study_name, sum(t.state == TrialState.COMPLETE for t in trials))
        if self._judged[0] != key:
            self._judged = (key, self._stopping.reason(study))
        return self._judged[1]

    @property
    def budget(self) -> float | None:
        """What the whole study may cost, in finetunes; None for no cap."""
        return self._budget.finetunes

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
        history = self._read(study, study.get_trials(deepcopy=False))
        copy = next(r for r in history.records if r.number == trial.number)
        twin = duplicate_promotion(history.records, copy)
        if twin is not None:
            _logger.info("Trial %d repeats the promotion %d.", trial.number, twin)
        over = stage != BEGUN and is_over_budget(
            self._ledger(study, history), copy, self._budget_of(study, history)
        )
        # From here on a copy that has begun stands, whatever claims others write for a moment.
        withdrawn = twin is not None or over
        set_trial_user_attr(study, trial, PROMOTION, WITHDRAWN if withdrawn else BEGUN)
        if withdrawn:
            self._fill(study)
        return withdrawn

    def _fill(self, study: Study) -> None:
        """Queue copies for all free slots, the best one first: they are executed in this order."""
        trials = study.get_trials(deepcopy=False)
        history = self._read(study, trials)
        ledger, budget = self._ledger(study, history), self._budget_of(study, history)
        by_number = {trial.number: trial for trial in trials}
        kept = self._kept(study, ledger, budget)
        if kept and kept == budget.left(ledger):
            if queue_second_seeds(study, trials, history, ledger, budget, kept):
                return
            kept = 0  # there is nothing to repeat
        if budget.is_automatic:
            if not budget.free(ledger, ledger.claims):
                return
            if not is_time(ledger, history, self._aim(study, history.tasks), seed=self._seed):
                return
        for candidate in decide(ledger, budget, self._order(study, history, ledger), kept):
            study.add_trial(_promoted_copy(by_number[candidate.number]))
            _logger.info("The preview of trial %d is promoted.", candidate.number)

    def queue_second_seeds(self, study: Study) -> None:
        """Queue the second seeds of the best weights, if nothing else is left to finetune.

        What a preview does as it ends; for whoever runs trials where no previews come any more.
        """
        if not self._second_seeds:
            return
        trials = study.get_trials(deepcopy=False)
        history = self._read(study, trials)
        ledger, budget = self._ledger(study, history), self._budget_of(study, history)
        kept = self._kept(study, ledger, budget)
        if kept and kept == budget.left(ledger):
            queue_second_seeds(study, trials, history, ledger, budget, kept)

    def _kept(self, study: Study, ledger: Ledger, budget: Budget) -> int:
        """How many of the finetunes that are left are for second seeds."""
        if not self._second_seeds or len(study.directions) > 1:
            return 0
        return second_seeds_left(ledger, budget, self._second_seeds)

    def _read(self, study: Study, trials: Sequence[FrozenTrial]) -> History:
        tasks = task_names(study, trials)
        if self._reader.tasks != tasks:
            self._reader = TrialReader(tasks)
        return self._reader.read(study.study_name, trials)

    def _ledger(self, study: Study, history: History) -> Ledger:
        spent = 0.0
        if self._budget.finetunes is not None:
            spent = self._spending(study, history).total
        return Ledger.of(history.records, several=len(study.directions) > 1, spent=spent)

    def _spending(self, study: Study, history: History) -> Spending:
        steps = self._budget.finetune_steps or finetune_steps(study)
        return spending(history.records, study_costs(study), len(history.tasks), steps)

    def _budget_of(self, study: Study, history: History) -> Budget:
        budget = self._budget
        # Without weights there is nothing to compare, and who only previews can't wait for truths.
        if self._paced is not None and len(history.tasks) > 1 and not has_preview_runs(study):
            budget = self._paced
        if budget.max_steps is None or budget.finetune_steps is not None:
            return budget
        return replace(budget, finetune_steps=finetune_steps(study))

    def _order(self, study: Study, history: History, ledger: Ledger) -> Order:
        def order(candidates: Sequence[Candidate]) -> Iterable[Candidate]:
            aim = self._aim(study, history.tasks)
            if len(candidates) < 2 or len(history.tasks) < 2:
                return most_promising_previews(aim, history)(candidates)
            return most_promising_truths(
                candidates, history, aim=aim, n_promoted=len(ledger.claims), seed=self._seed
            )

        return order

    def _aim(self, study: Study, tasks: Sequence[str]) -> Aim:
        return Aim(
            tuple(d == StudyDirection.MAXIMIZE for d in study.directions),
            self._score,
            self._constraints,
            reference_point(study, tasks) if len(study.directions) > 1 else None,
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
