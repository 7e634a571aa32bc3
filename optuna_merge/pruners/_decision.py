"""Promotion as pure functions: what the trials say in, decisions as data out.

Nothing here writes, and nothing is remembered between calls: a restarted worker, or one on another
machine, decides the same from the same trials.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt
from optuna.trial import TrialState

from optuna_merge.goals import below_nadir, layers, volume_alone
from optuna_merge.pruners._budget import Budget
from optuna_merge.pruners._ledger import Candidate, Ledger
from optuna_merge.trials import WITHDRAWN, Record

Order = Callable[[Sequence[Candidate]], Iterable[Candidate]]
"""Candidates, the one to promote first in front; read only as far as there are free slots."""


def best_scores_first(maximize: bool) -> Order:
    """Order by the first score, the best in front; ties by the lower trial number."""
    sign = -1.0 if maximize else 1.0
    return lambda candidates: sorted(candidates, key=lambda c: (sign * c.scores[0], c.number))


def best_fronts_first(
    maximize: Sequence[bool], reference: npt.NDArray[np.float64] | None = None
) -> Order:
    """Order by non-domination rank of the scores, then by the hypervolume of the point alone.

    Args:
        maximize: For each score, whether larger is better.
        reference: Where volumes are measured from; None: a tenth of the range below the worst.
    """
    signs = np.where(maximize, 1.0, -1.0)

    def order(candidates: Sequence[Candidate]) -> Iterable[Candidate]:
        points = signs * np.array([c.scores for c in candidates], dtype=float)
        if not len(points):
            return
        corner = below_nadir(points) if reference is None else signs * reference
        volumes = volume_alone(points, corner)
        for layer in layers(points):
            for i in sorted(layer, key=lambda i: (-volumes[i], candidates[i].number)):
                yield candidates[i]

    return order


def decide(ledger: Ledger, budget: Budget, order: Order, kept: int = 0) -> tuple[Candidate, ...]:
    """The previews to promote now, the first one first.

    The free slots of the budget go to the first candidates of the whole history. With automatic
    pacing there is one slot a decision.

    Args:
        ledger: That of all trials of the study.
        budget: How many may be promoted.
        order: Which candidate comes first; called only when there is a free slot.
        kept: How many of the finetunes that are left are not for previews.
    """
    free = budget.free(ledger, ledger.claims)
    left = budget.left(ledger) if kept else None
    if left is not None:
        free = max(0, min(free, left - kept))
    if budget.is_automatic:
        free = min(free, 1)
    return tuple(islice(order(ledger.candidates), free)) if free else ()


def is_over_budget(ledger: Ledger, copy: Record, budget: Budget) -> bool:
    """Whether a promoted copy must give way since the slots are taken by claims before its own.

    All workers see one order of copies, and of those that were queued at once exactly as many run
    as there are slots. Lineages that were finetuned by their own trial come before copies, and so
    do copies that have begun. With no claim before its own a copy runs in any case, but for a
    budget that is zero or spent: it was queued for a slot, though the previews that opened it may
    have failed.
    """
    if budget.is_zero:
        return True
    first = ledger.copies.get(copy.lineage, copy.number)
    ahead = {other for other, number in ledger.copies.items() if number < first}
    ahead = (ahead | ledger.finetuned | ledger.begun) - {copy.lineage}
    if budget.fitting(ledger, ahead) < 1:
        return True
    return bool(ahead) and budget.free(ledger, ahead) < 1


def duplicate_promotion(records: Sequence[Record], copy: Record) -> int | None:
    """The number of the copy that finetunes the same preview already, or None: then this one runs.

    Of the copies of one lineage the one of the lowest number runs, as long as it is alive: a copy
    that failed, or that gave its claim back, leaves the place to the next.
    """
    return next(
        (
            r.number
            for r in records
            if r.is_copy and r.number < copy.number and _same(r, copy)
            # it waits, runs, or was finetuned to a rung at least
            if r.promotion != WITHDRAWN and r.state != TrialState.FAIL
            if r.state != TrialState.PRUNED or r.last_step > 0
        ),
        None,
    )


def _same(one: Record, other: Record) -> bool:
    """Whether two copies are for one finetune: of one preview, or one repeat of equal weights."""
    if one.repeat or other.repeat:
        return (one.repeat, one.weights) == (other.repeat, other.weights)
    return one.lineage == other.lineage
