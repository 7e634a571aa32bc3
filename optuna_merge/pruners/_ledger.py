"""Previews, claims and costs: what the trials of a study say about promotions.

A lineage (one weighting: a preview, its retries, its promoted copy) holds a *claim* on the budget
from the moment that a copy of its preview is queued. A claim that was used is never given back,
whatever became of the finetune: the budget counts finetunes begun, so that a finetune that fails
each time can't eat its way through all previews.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from optuna_merge.trials import BEGUN, WITHDRAWN, Record, read_trial


@dataclass(frozen=True)
class Candidate:
    """A preview that may be promoted."""

    number: int
    lineage: int
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Ledger:
    """What the trials of a study say about previews and promotions.

    Attributes:
        previews: Lineages that were previewed. Without baselines; failed trials count only where
            they were promoted first.
        finetuned: Lineages whose own trial went on to a finetune, as under another pruner: they
            hold a claim.
        copies: Lineages of which copies hold a claim -> the number of the first copy.
        repeats: Lineages of copies that finetune weights a second time.
        under_way: Lineages of which a copy runs or waits.
        baselines_under_way: How many baselines run or wait.
        spent: What the study has cost, in finetunes; 0 where it was not asked for.
        begun: Lineages of which a copy has compared its claim with the budget and goes on.
        candidates: Previews with finite scores, of trials that run or were pruned and can be
            copied, whose lineage holds no claim.
    """

    previews: frozenset[int]
    finetuned: frozenset[int]
    copies: Mapping[int, int]
    candidates: tuple[Candidate, ...]
    begun: frozenset[int] = frozenset()
    repeats: frozenset[int] = frozenset()
    under_way: frozenset[int] = frozenset()
    baselines_under_way: int = 0
    spent: float = 0.0

    @property
    def claims(self) -> frozenset[int]:
        """Lineages that count against the budget."""
        return self.finetuned | self.copies.keys()

    @classmethod
    def of(cls, records: Sequence[Record], *, several: bool = False, spent: float = 0.0) -> Ledger:
        """Count previews and claims.

        Args:
            records: Of all trials, ordered by number.
            several: Whether the study has several objectives, one per task, so that the previews
                are the tasks' metrics; else they are the score at step 0.
            spent: What the study has cost, in finetunes.
        """
        previews = [r for r in records if _is_preview(r, several)]
        standing = _standing(r for r in records if r.is_copy)
        copies: dict[int, int] = {}
        for copy in standing:
            copies.setdefault(copy.lineage, copy.number)
        went_on = (r for r in previews if r.state == TrialState.COMPLETE or r.last_step > 0)
        finetuned = frozenset(r.lineage for r in went_on)
        claims = finetuned | copies.keys()
        candidates: dict[int, Candidate] = {}
        for r in previews:
            able = r.state in (TrialState.PRUNED, TrialState.RUNNING) and r.can_be_copied
            if able and r.lineage not in claims and r.lineage not in candidates:
                scores = r.preview_metrics if several else (r.preview,)
                if all(map(math.isfinite, scores)):
                    candidates[r.lineage] = Candidate(r.number, r.lineage, scores)
        return cls(
            previews=frozenset(r.lineage for r in previews),
            finetuned=finetuned,
            copies=copies,
            candidates=tuple(candidates.values()),
            begun=frozenset(r.lineage for r in standing if r.promotion == BEGUN),
            repeats=frozenset(r.lineage for r in standing if r.repeat),
            under_way=frozenset(r.lineage for r in standing if not r.state.is_finished()),
            baselines_under_way=sum(r.is_baseline and not r.state.is_finished() for r in records),
            spent=spent,
        )


def read_ledger(
    trials: Sequence[FrozenTrial], tasks: Sequence[str] = (), *, several: bool = False
) -> Ledger:
    """`Ledger.of` trials; with several objectives the tasks are needed."""
    return Ledger.of([read_trial(trial, tasks) for trial in trials], several=several)


def _is_preview(record: Record, several: bool) -> bool:
    """Whether it counts; retry clones count in the place of failed trials, so lineages once."""
    if record.is_copy or record.is_baseline or record.state == TrialState.FAIL:
        return False
    return record.noted if several else record.reported


def _standing(copies: Iterable[Record]) -> list[Record]:
    """The copies that hold a claim; one that withdrew gave up that of its earlier tries, too."""
    standing: dict[int, Record] = {}
    for copy in copies:
        if copy.promotion != WITHDRAWN:
            standing[copy.number] = copy
        else:
            for attempt in copy.retries:
                standing.pop(attempt, None)
    return list(standing.values())
