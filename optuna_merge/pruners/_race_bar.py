"""What a preview is raced against: a pure function of the study's trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from optuna_merge._optuna import PROMOTED_FROM, first_attempt
from optuna_merge.pruners._decision import (
    BASELINE,
    Budget,
    Candidate,
    best_scores_first,
    read_ledger,
    step_zero,
)
from optuna_merge.pruners._truth_order import score_correlation
from optuna_merge.samplers._history import TrialReader

_REFERENCES = 16


@dataclass(frozen=True)
class RaceBar:
    """The score that a new preview must be able to reach, and previews to compare it with.

    Attributes:
        trial: The full preview that stands at the bar.
        references: Full previews, `trial` among them.
    """

    trial: FrozenTrial
    references: tuple[FrozenTrial, ...]

    @property
    def score(self) -> float:
        """The bar's preview score."""
        return self.trial.intermediate_values[0]


def race_bar(
    trials: Sequence[FrozenTrial],
    budget: Budget,
    *,
    slack: float = 1.0,
    maximize: bool,
    tasks: Sequence[str] = (),
) -> RaceBar | None:
    """The bar for the next preview of a study, or None where it must be made in full.

    Of n previews, the next one included, about B = `fraction x n` are promoted. The bar is the
    preview at rank B + slack x sqrt(B), rounded up, among the full ones so far, the best in front:
    of previews in random order, those that are among the best B in the end stand at a rank of
    their time that is about Poisson distributed. Without baselines, which are no candidates,
    copies, and previews that aren't finite.

    References are the first 16 full previews, baselines included, which are spread over the
    weights by design, and the bar: few, so that another process computes few of them again.

    A preview far below the others may be worth a finetune all the same where previews don't rank
    truths. So there is no bar while eight truths or more don't show that they do: while the
    interval of their rank correlation reaches down to zero.

    Args:
        trials: All trials of the study, ordered by number.
        budget: The pruner's.
        slack: Standard deviations between the promotion threshold and the bar.
        maximize: Direction of the study.
        tasks: Task names, in order; without them the truths are not looked at.

    Returns:
        None during the warmup, while the budget allows no promotion, while there are fewer full
        previews than the bar's rank, and while previews don't prove true.
    """
    ledger = read_ledger(trials)
    count = len(ledger.previews)
    if count < budget.warmup or budget.cap(count + 1) == 0:
        return None
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    proved = score_correlation(TrialReader(tuple(tasks)).read("", finished).records)
    if proved is not None and proved.low <= 0:
        return None
    full = [trial for trial in trials if _is_full(trial)]
    ranked = best_scores_first(maximize)(
        [
            Candidate(trial.number, lineage, (trial.intermediate_values[0],))
            for trial in full
            if BASELINE not in trial.user_attrs
            and (lineage := first_attempt(trial)) in ledger.previews
        ]
    )
    promoted = budget.fraction * (count + 1)
    rank = math.ceil(promoted + slack * math.sqrt(promoted) - 1e-9)
    numbers = [candidate.number for candidate in ranked]
    if rank > len(numbers):
        return None
    at_bar = next(trial for trial in full if trial.number == numbers[rank - 1])
    first = tuple(trial for trial in full[:_REFERENCES] if trial is not at_bar)
    return RaceBar(at_bar, (*first, at_bar))


def _is_full(trial: FrozenTrial) -> bool:
    preview = step_zero(trial)
    return (
        preview is not None
        and math.isfinite(preview[0])
        and PROMOTED_FROM not in trial.user_attrs
        and trial.state not in (TrialState.FAIL, TrialState.WAITING)
    )
