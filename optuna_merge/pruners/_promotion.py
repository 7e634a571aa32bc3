"""`PromotionPruner`: of many previews, finetune a fixed fraction, the most promising ones."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
import optuna
from optuna.pruners import BasePruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_merge._optuna import (
    PROMOTED_AT,
    PROMOTED_FROM,
    latest_view,
    retry_history,
    set_trial_user_attr,
    study_view,
)
from optuna_merge._tries import RUN
from optuna_merge.pruners._decision import (
    BASELINE,
    PREVIEW,
    RACED_OUT,
    Budget,
    Candidate,
    Gate,
    Ledger,
    LedgerReader,
    Order,
    Promote,
    Prune,
    Scores,
    claim_holds,
    count_coming,
    decide,
    is_duplicate_promotion,
    is_over_budget,
    preview_metrics,
    value_at,
)
from optuna_merge.pruners._fractions import (
    equal_fractions,
    finished_ladders,
    measured_fractions,
)
from optuna_merge.pruners._truth_order import (
    Aim,
    most_promising_previews,
    most_promising_truths,
)
from optuna_merge.samplers._history import TrialReader
from optuna_merge.study import (
    finetune_steps,
    reference_point,
    refinement_step_cost,
    task_names,
)

_logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float64]


class PromotionPruner(BasePruner):
    """Prune previews, except those that are worth a real finetune.

    A trial reports its preview at step 0 and asks `should_prune`; what it reports at later steps
    are rungs of its finetune. At most floor(fraction x previews) trials go beyond step 0, and
    whenever one more may, it is the most promising preview of the whole study that has not been
    promoted yet. Where that is not the current trial but one that was pruned before, a copy of it
    is queued (WAITING, with its parameters, its user attributes, its preview at step 0 and
    `promoted_from`), which is executed before any new trial. A new preview is never promoted
    merely for having been good when it was made, and none is lost for having come too early.

    Most promising is, as soon as there are two truths (baselines count), what has the largest
    expected improvement of the TRUTH, by the same models as in `PreviewSampler`; before that, and
    with `rank="preview"`, what has the best preview. While eight truths or more show no
    correlation with their previews, every fourth promotion goes to the preview whose truth is
    least certain, and a warning is logged. Where the previews prove true, the budget is spent all
    the same, unless `min_gain` says what a finetune must promise. `optuna-merge diagnose` shows
    how true they are.

    The decision is a pure function of the study's trials and the seed
    (`optuna_merge.pruners.decide`); it is written once to the trial's user attribute
    `preview_decision` ("promote", "prune" or "baseline") and replayed ever after, also for retry
    clones.

    What counts:
        - Trials with the user attribute `baseline` are always promoted and count neither as
          previews nor as promotions.
        - A preview and its retry clones count once; failed trials are no previews.
        - A promotion counts once its finetune is decided, whatever becomes of it: the budget
          counts finetunes begun.
        - A preview that is NaN or infinite is pruned and never promoted, but counts as a preview;
          and so does one that was raced out (user attribute `raced_out_by`).
        - Ties go to the better preview, then to the lower trial number.

    With several workers exactly the budget is finetuned, and nothing twice. A trial claims its
    slot, reads all claims again, and gives way if there are more than slots; copies come in the
    order of their numbers, and one that comes too late, or is the second of one preview, is pruned
    when it asks at step 0. That is the only case in which a copy is pruned there. Slots given back
    are filled again. A copy that was queued by hand, with `promoted_from` but without
    `preview_decision`, is finetuned beyond the budget too.

    In a study of several objectives, one per task, the preview is the user attributes
    `preview_<task>`, and the most promising one has the largest expected hypervolume improvement
    of the truths (before there are two truths: the first by non-domination rank, then by the
    hypervolume of its preview alone). `Trial.should_prune` refuses to work there: ask
    `optuna_merge.pruners.should_prune`.

    All caps count promotions only, not the baselines. With a cap of zero nothing is promoted, nor
    are copies that are queued already.

    Where previews are refined by some training from the merge (`refinements`), there is a gate
    behind each refined preview, too: the trial reports it at its training step, and goes on to the
    next one, and at last to the finetune, as it does from the preview: the best one so far that
    has come to this gate, if there is a slot; those that ended there may go on later, as copies.
    With k refinements and fraction f, f^(i / (k + 1)) of the previews pass the i-th gate, as in
    successive halving (arXiv 1502.07943), and f the last one; the caps are caps of finetunes. What
    is refined tells the models of the truth more than the preview does.

    A copy has its preview already; reporting it again does no harm: Optuna keeps the first value
    and warns.

    Args:
        fraction: Promotions per preview, in [0, 1]. With 0 only baselines are finetuned.
        max_promotions: Cap on the promotions of the whole study; None for none.
        warmup: Number of previews before anything is promoted.
        max_steps: Cap on the training steps of all promoted finetunes together; None for none. A
            promotion reserves a whole finetune's steps; one that is pruned at a rung gives back
            what it did not use, for the next preview on. Never passed.
        max_seconds: Cap on the seconds of all promoted finetunes together; None for none. One that
            is under way counts as the longest finetune so far, so only a finetune that takes
            longer than all before it passes the cap; while none has ended they go one at a time.
        finetune_steps: Training steps of one finetune, for `max_steps`; None: those that the
            study's definition says.
        rank: "truth" or "preview", what candidates are ordered by; see above. Needs two tasks or
            more with parameters `w_<task>` between 0 and 1.
        score: What the study's value is in terms of the tasks' metrics, as for `PreviewSampler`:
            a function from an array of metrics `... x T` to an array `...`. With it, and with the
            user attributes `preview_<task>` and `truth_<task>`, each task's metric is modelled.
        constraints: What the tasks' true metrics must keep, as for `PreviewSampler`: promising is
            then what may be better than the best feasible truth and feasible itself.
        min_gain: Smallest expected improvement of the truth that is worth a finetune, in the
            score's unit, such as a fraction of the noise of one finetune. Slots of the budget stay
            free while no preview promises as much. It holds only while the previews prove true
            (the interval of their rank correlation, over eight truths at least, is above zero),
            in studies of one objective and with `rank="truth"`. 0: the budget is always spent.
        refinements: Steps at which refined previews are reported, rising; of a definition with a
            `RefinementSettings`, its `steps`.
        rung_pruner: What decides at steps after the last gate; None never prunes there. It sees
            the study as if there were no previews: trials that never went beyond a gate, and the
            values at gates, are hidden, since a preview is another measure than a rung of the
            finetune and would be taken for a very good or bad first rung. Failed trials are
            hidden too: their retry clones stand for them. Baselines are never pruned and it is
            not asked.
        seed: Of the draw between models that trust the previews and models that don't; None is
            0. Workers with one seed decide alike; with several, two may queue different copies
            for one slot, of which the later gives way.

    Raises:
        ValueError: an argument is out of its range.
        TypeError: `rung_pruner` is no pruner, or `score` no function.

    Examples:
        Of the previews of an objective, the most promising eighth goes on to a finetune:

        >>> from optuna_merge.samplers import PreviewSampler
        >>> tasks = ["news", "reviews"]
        >>> def objective(trial):
        ...     w_news, w_reviews = (trial.suggest_float(f"w_{task}", 0, 1) for task in tasks)
        ...     preview = 0.8 - (w_news / (w_news + w_reviews) - 0.6) ** 2
        ...     trial.report(preview, step=0)
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
        fraction: float = 0.25,
        max_promotions: int | None = None,
        warmup: int = 8,
        max_steps: int | None = None,
        max_seconds: float | None = None,
        finetune_steps: int | None = None,
        rank: Literal["truth", "preview"] = "truth",
        score: Callable[[Array], Array] | None = None,
        constraints: Callable[[Array], Array] | None = None,
        min_gain: float = 0.0,
        refinements: Sequence[int] = (),
        rung_pruner: BasePruner | None = None,
        seed: int | None = None,
    ) -> None:
        if rank not in ("truth", "preview"):
            raise ValueError(f"rank is {rank!r}, expected 'truth' or 'preview'")
        if score is not None and not callable(score):
            raise TypeError(f"score is {type(score).__name__}, expected a function or None")
        if not 0 <= min_gain < float("inf"):
            raise ValueError(f"min_gain is {min_gain}, expected a finite number, 0 or more")
        if constraints is not None and not callable(constraints):
            raise TypeError(
                f"constraints is {type(constraints).__name__}, expected a function or None"
            )
        if rung_pruner is not None and not isinstance(rung_pruner, BasePruner):
            raise TypeError(
                f"rung_pruner is {type(rung_pruner).__name__}, expected an Optuna pruner or None"
            )
        steps = tuple(refinements)
        if not all(a < b for a, b in pairwise((0, *steps))):
            raise ValueError(f"refinements are {steps}, expected training steps that rise from 0")
        self._budget = Budget(
            fraction, max_promotions, warmup, max_steps, max_seconds, finetune_steps
        )
        self._gates = tuple(Gate(step) for step in (0, *steps))
        self._rank, self._score, self._constraints = rank, score, constraints
        self._rung_pruner = rung_pruner
        self._min_gain = min_gain
        self._seed = seed or 0
        self._reader = TrialReader(())
        self._ledgers = LedgerReader()

    def preview_budget(self, study: Study) -> Budget:
        """How many previews may be promoted now, to a refined preview or a finetune."""
        return self._budget_of(study, study.get_trials(deepcopy=False), PREVIEW)

    def is_spent(self, study: Study) -> bool:
        """Whether the caps let nothing more be finetuned, however many previews come."""
        trials, last = study.get_trials(deepcopy=False), self._gates[-1]
        return self._budget_of(study, trials, last).is_spent(self._ledger(study, trials, last))

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial ends here; see the class. Called by `Trial.should_prune`."""
        step = trial.last_step
        if RACED_OUT in trial.user_attrs:
            return self._give_way(study, trial, PREVIEW)
        gate = Gate(step or 0)
        if gate != Gate.of_copy(trial) and retry_history(trial) and _is_repeated(study, trial):
            return self._give_way(study, trial, Gate.of_copy(trial))
        if gate not in self._gates:
            return self._prune_at_rung(study, trial)
        if self._scores(study, gate)(trial) is None:
            return False
        if PROMOTED_FROM in trial.user_attrs and Gate.of_copy(trial) == gate:
            return self._prune_copy(study, trial, gate)
        return self._prune_preview(study, trial, gate)

    def _prune_preview(self, study: Study, trial: FrozenTrial, gate: Gate) -> bool:
        decision = trial.user_attrs.get(gate.decision)
        if decision is not None:
            return self._replay(study, decision, gate)
        if BASELINE in trial.user_attrs:
            return self._record(study, trial, "baseline", gate)
        trials = study.get_trials(deepcopy=False)
        decisions = self._decide(study, trials, trial.number, gate)
        _queue_copies(study, trials, [d for d in decisions if d != Promote(trial.number)], gate)
        if Prune(trial.number) in decisions:
            return self._give_way(study, trial, gate)
        set_trial_user_attr(study, trial, gate.claim, True)
        trials = study.get_trials(deepcopy=False)
        ledger = self._ledger(study, trials, gate)
        budget = self._budget_of(study, trials, gate)
        if claim_holds(trials, trial.number, budget, ledger=ledger):
            return self._record(study, trial, "promote", gate)
        return self._give_way(study, trial, gate)

    def _prune_copy(self, study: Study, trial: FrozenTrial, gate: Gate) -> bool:
        if trial.user_attrs.get(gate.decision) == "prune":
            return self._replay(study, "prune", gate)
        trials = study.get_trials(deepcopy=False)
        sibling = is_duplicate_promotion(trials, trial)
        if sibling is not None:
            _logger.info("Trial %d repeats the promotion %d.", trial.number, sibling)
            return self._give_way(study, trial, gate)
        if gate.claim in trial.user_attrs:
            return False
        by_hand = gate.decision not in trial.user_attrs
        budget, scores = self._budget_of(study, trials, gate), self._scores(study, gate)
        if not by_hand and is_over_budget(trials, trial, budget, scores):
            return self._give_way(study, trial, gate)
        # From here on it stands, also when claims that don't are written for a moment.
        set_trial_user_attr(study, trial, gate.claim, True)
        return self._record(study, trial, "promote", gate) if by_hand else False

    def _give_way(self, study: Study, trial: FrozenTrial, gate: Gate) -> bool:
        """Prune the trial, then fill what may be free now.

        In this order: of two that gave way to each other, the second one sees it; and who filled
        slots while this trial was undecided did not see it among the candidates.
        """
        self._record(study, trial, "prune", gate)
        return self._replay(study, "prune", gate)

    def _replay(self, study: Study, decision: str, gate: Gate) -> bool:
        if decision != "prune":
            return False
        # A worker may have died between giving way and filling the slot: its clone fills it.
        for later in self._gates[self._gates.index(gate) :]:
            trials = study.get_trials(deepcopy=False)
            decisions = self._decide(study, trials, None, later)
            _queue_copies(study, trials, decisions, later)
            if decisions:
                break  # the gates after it are filled when these come there
        return True

    def _prune_at_rung(self, study: Study, trial: FrozenTrial) -> bool:
        if self._rung_pruner is None or BASELINE in trial.user_attrs:
            return False
        finetune_of = partial(_finetune_of, gates=self._gates)
        seen = finetune_of(trial)
        assert seen is not None  # it has reported a step that is no gate
        return self._rung_pruner.prune(study_view(study, self._rung_pruner, finetune_of), seen)

    def _decide(
        self, study: Study, trials: list[FrozenTrial], number: int | None, gate: Gate
    ) -> tuple[Promote | Prune, ...]:
        ledger = self._ledger(study, trials, gate)
        coming = 0
        if gate != PREVIEW:
            before = self._gates[self._gates.index(gate) - 1]
            coming = count_coming(trials, self._ledger(study, trials, before), ledger)
        return decide(
            trials,
            number,
            budget=self._budget_of(study, trials, gate),
            order=self._order(study, trials, gate, ledger),
            scores=self._scores(study, gate),
            gate=gate,
            ledger=ledger,
            coming=coming,
        )

    def _ledger(self, study: Study, trials: list[FrozenTrial], gate: Gate) -> Ledger:
        return self._ledgers.read(study.study_name, trials, self._scores(study, gate), gate)

    def _budget_of(self, study: Study, trials: list[FrozenTrial], gate: Gate) -> Budget:
        """The budget of a gate, per preview; that of finetunes is the last one's."""
        whole = self._budget
        if whole.max_steps is not None and whole.finetune_steps is None:
            whole = replace(whole, finetune_steps=finetune_steps(study))
        if len(self._gates) == 1 or whole.is_zero:
            return whole  # nothing is to be refined for finetunes that never come
        passing = self._passing(study, trials)
        index = self._gates.index(gate)
        reserve = passing[index] / passing[index - 1] if index else 0.0
        if gate == self._gates[-1]:
            return replace(whole, reserve=reserve)
        return Budget(passing[index], warmup=whole.warmup, reserve=reserve)

    def _passing(self, study: Study, trials: list[FrozenTrial]) -> tuple[float, ...]:
        """By gate, the fraction of the previews that pass it."""
        fraction, steps = self._budget.fraction, [gate.step for gate in self._gates[1:]]
        whole = self._budget.finetune_steps or finetune_steps(study)
        if whole is None:  # what a refinement costs beside it isn't known
            return equal_fractions(fraction, len(self._gates))
        cost = refinement_step_cost(study)
        costs = (*(cost * (b - a) for a, b in pairwise((0, *steps))), float(whole))
        rows = finished_ladders(trials, steps, task_names(study))
        return measured_fractions(fraction, rows, costs)

    def _scores(self, study: Study, gate: Gate) -> Scores:
        if len(study.directions) == 1:
            return value_at(gate)
        return preview_metrics(task_names(study))

    def _order(self, study: Study, trials: list[FrozenTrial], gate: Gate, ledger: Ledger) -> Order:
        def order(candidates: Sequence[Candidate]) -> Iterable[Candidate]:
            tasks = task_names(study)
            if self._reader.tasks != tasks:
                self._reader = TrialReader(tasks)
            history = self._reader.read(study.study_name, trials)
            aim = Aim(
                tuple(d == StudyDirection.MAXIMIZE for d in study.directions),
                self._score,
                self._constraints,
                reference_point(study, tasks) if len(study.directions) > 1 else None,
                self._min_gain,
            )
            if self._rank == "preview" or len(candidates) < 2 or len(tasks) < 2:
                return most_promising_previews(aim, history)(candidates)
            return most_promising_truths(
                candidates,
                trials,
                history,
                aim=aim,
                seed=self._seed,
                scores=self._scores(study, gate),
                gate=gate,
                ledger=ledger,
            )

        return order

    def _record(self, study: Study, trial: FrozenTrial, decision: str, gate: Gate) -> bool:
        set_trial_user_attr(study, trial, gate.decision, decision)
        return decision == "prune"


def _is_repeated(study: Study, trial: FrozenTrial) -> bool:
    """Whether another copy of the promotion took over while this one's worker was dead.

    A copy that asks at its gate is compared there; a clone that has come further is not.
    """
    return is_duplicate_promotion(study.get_trials(deepcopy=False), trial) is not None


def should_prune(trial: optuna.Trial) -> bool:
    """`trial.should_prune()`, also in studies of several objectives, where Optuna has none.

    Only pruners that need no reported values, as `PromotionPruner` does, prune there.
    """
    if len(trial.study.directions) == 1:
        return trial.should_prune()
    return trial.study.pruner.prune(trial.study, latest_view(trial))


def hand_over(trial: optuna.Trial) -> None:
    """Queue a copy of a trial that is promoted at its preview: others finetune, it may end.

    As if it had been pruned and promoted later. In this order: when the worker dies in between,
    the retry of the trial fills the slot that is free then.
    """
    trial.set_user_attr(PREVIEW.decision, "prune")
    trial.study.add_trial(_copy_to_promote(latest_view(trial), PREVIEW))


def _finetune_of(trial: FrozenTrial, gates: Iterable[Gate]) -> FrozenTrial | None:
    """The trial as if it had no previews; None where it has not gone beyond them, or failed."""
    previews = {gate.step for gate in gates}
    rungs = {k: value for k, value in trial.intermediate_values.items() if k not in previews}
    if not rungs or trial.state in (TrialState.FAIL, TrialState.WAITING):
        return None
    seen = copy.copy(trial)
    seen.intermediate_values = rungs
    return seen


def _queue_copies(
    study: Study,
    trials: Sequence[FrozenTrial],
    decisions: Iterable[Promote | Prune],
    gate: Gate,
) -> None:
    by_number = {trial.number: trial for trial in trials}
    for decision in decisions:  # the best one first: copies are executed in this order
        if isinstance(decision, Promote):
            study.add_trial(_copy_to_promote(by_number[decision.number], gate))
            _logger.info("The preview of trial %d is promoted.", decision.number)


def _copy_to_promote(trial: FrozenTrial, gate: Gate) -> FrozenTrial:
    # System attributes stay behind: constraints, for one, are those of the preview, and Optuna
    # would ignore the ones that the finetune sets.
    attrs = {k: value for k, value in trial.user_attrs.items() if k not in (gate.claim, RUN)}
    attrs |= {gate.decision: "promote", PROMOTED_FROM: trial.number}
    if gate.step:
        attrs[PROMOTED_AT] = gate.step
    known = {k: v for k, v in trial.intermediate_values.items() if k <= gate.step}
    return optuna.trial.create_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        intermediate_values=known,
        user_attrs=attrs,
    )
