"""Promotion as a pure function: the trials of a study in, decisions as data out.

Nothing here writes, and nothing is remembered between calls: a restarted worker, or one on another
machine, decides the same from the same trials.

Words. A *lineage* is one preview and all that goes on from it: retry clones of its trial, promoted
copies of it, and their clones. A lineage holds a *claim* on the budget from the moment a finetune
is decided for it: by its own trial, which was not pruned, or by a copy of it. A claim that was
used is never given back, whatever became of the finetune: the budget counts finetunes begun, so
that a finetune that fails each time can't eat its way through all previews.

A *gate* is a step at which a trial goes on or ends: the preview, and where previews are refined,
each refined preview. What holds of the preview's gate holds of every one: it has its own budget,
a fraction of all previews, and its own claims; and the best lineage that has ended there goes on
when there is a slot, by a copy of its trial that is promoted at this gate. Slots are kept for what
is on its way to a gate: who comes first does not go on merely for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import numpy.typing as npt
from optuna.trial import FrozenTrial, TrialState

from optuna_merge._names import CLAIM, DECISION
from optuna_merge._optuna import (
    PROMOTED_AT,
    PROMOTED_FROM,
    can_be_copied,
    first_attempt,
    retry_history,
)
from optuna_merge.fronts import below_nadir, layers, volume_alone

BASELINE = "baseline"
RACED_OUT = "raced_out_by"
"""Of a trial whose preview was given up: the number of the trial that stood at the bar."""
_ROUNDING = 1e-9  # 0.29 * 100 is 28.999999999999996, and 29 is meant

Scores = Callable[[FrozenTrial], Sequence[float] | None]
"""The preview's scores of a trial, or None where it has none."""


@dataclass(frozen=True)
class Gate:
    """Where a trial goes on or ends.

    Attributes:
        step: The step whose value was reported last: 0 for the preview.
    """

    step: int = 0

    @property
    def decision(self) -> str:
        """The user attribute that the decision is written to."""
        return f"{DECISION}_{self.step}" if self.step else DECISION

    @property
    def claim(self) -> str:
        """The user attribute of a trial that claims a slot."""
        return f"{CLAIM}_{self.step}" if self.step else CLAIM

    @classmethod
    def of_copy(cls, trial: FrozenTrial) -> Gate:
        """The gate that a copy was promoted at."""
        return cls(int(trial.user_attrs.get(PROMOTED_AT, 0)))


PREVIEW = Gate()


@dataclass(frozen=True)
class Promote:
    """Trial `number` is finetuned: not pruned if it is the current one, else a copy is queued."""

    number: int


@dataclass(frozen=True)
class Prune:
    """Trial `number` ends with its preview. It stays a candidate for later promotion."""

    number: int


@dataclass(frozen=True)
class Budget:
    """How many previews may be promoted, and what their finetunes may cost.

    Attributes:
        fraction: Promotions per preview, in [0, 1].
        max_promotions: Cap on all promotions of the study; None for none.
        warmup: Number of previews before anything is promoted.
        max_steps: Training steps of all promoted finetunes together; None for no cap. Needs
            `finetune_steps`.
        max_seconds: Seconds of all promoted finetunes together; None for no cap.
        finetune_steps: Training steps of one finetune: a promotion reserves them all, and gives
            back what is left when its finetune is pruned at a rung.
        reserve: Slots that are kept for each lineage on its way to the gate, in [0, 1].
    """

    fraction: float = 0.25
    max_promotions: int | None = None
    warmup: int = 8
    max_steps: int | None = None
    max_seconds: float | None = None
    finetune_steps: int | None = None
    reserve: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.fraction <= 1.0:  # also refuses NaN
            raise ValueError(
                f"fraction is {self.fraction}, expected promotions per preview between 0 and 1"
            )
        if self.warmup < 0:
            raise ValueError(f"warmup is {self.warmup}, expected a number of previews, 0 or more")
        for name in ("max_promotions", "max_steps", "max_seconds"):
            value = getattr(self, name)
            if value is not None and not value >= 0:  # also refuses NaN
                raise ValueError(f"{name} is {value}, expected 0 or more, or None for no cap")
        if self.finetune_steps is not None and self.finetune_steps < 1:
            raise ValueError(
                f"finetune_steps is {self.finetune_steps}, expected the training steps of one "
                f"finetune, 1 or more"
            )

    @property
    def is_zero(self) -> bool:
        """Whether nothing may ever be promoted."""
        return 0 in (self.fraction, self.max_promotions, self.max_steps, self.max_seconds)

    def cap(self, n_previews: int) -> int:
        """Promotions allowed after `n_previews` previews: floor(fraction x previews)."""
        if n_previews < self.warmup:
            return 0
        cap = math.floor(self.fraction * n_previews + _ROUNDING)
        return cap if self.max_promotions is None else min(cap, self.max_promotions)

    def free(self, ledger: Ledger, claims: Iterable[int]) -> int:
        """How many more may be promoted beside the claims of these lineages.

        Steps: a claim whose finetune is under way, or failed, counts with all of its steps.
        Seconds: it counts with the longest finetune that the study has seen, and so does the one
        to promote; while none has been seen there is only one at a time. So the cap on steps is
        never passed, that on seconds only by a finetune that takes longer than all before it.

        Raises:
            ValueError: a cap on steps, but `finetune_steps` is not known.
        """
        held = frozenset(claims)
        free = self.cap(ledger.total) - len(held)
        if self.max_steps is not None:
            if self.finetune_steps is None:
                raise ValueError(
                    "max_steps needs the number of training steps of one finetune, which this "
                    "study's definition does not say; give PromotionPruner(finetune_steps=...)"
                )
            whole = self.finetune_steps
            spent = sum(min(ledger.steps.get(lineage, whole), whole) for lineage in held)
            free = min(free, (self.max_steps - spent) // whole)
        if self.max_seconds is not None:
            free = min(free, self._free_by_time(ledger, held, self.max_seconds))
        return max(0, free)

    def is_spent(self, ledger: Ledger) -> bool:
        """Whether nothing more may be promoted, however many previews come.

        While finetunes are under way that is not settled: they may give steps back.
        """
        if self.is_zero:
            return True
        endless = replace(self, fraction=1.0, warmup=0)
        plenty = replace(ledger, total=len(ledger.claims) + 1)
        return endless.free(plenty, ledger.claims) == 0

    @staticmethod
    def _free_by_time(ledger: Ledger, held: frozenset[int], limit: float) -> int:
        longest = ledger.longest_seconds
        if longest is None:
            return 1 if limit > 0 and not held else 0
        spent = sum(ledger.seconds.get(lineage, longest) for lineage in held)
        if longest <= 0:
            return ledger.total if spent < limit else 0
        return math.floor((limit - spent) / longest + _ROUNDING)


@dataclass(frozen=True)
class Candidate:
    """A preview that may be promoted."""

    number: int
    lineage: int
    scores: tuple[float, ...]


Order = Callable[[Sequence[Candidate]], Iterable[Candidate]]
"""Candidates, the one to promote first in front; read only as far as there are free slots."""


@dataclass(frozen=True)
class Ledger:
    """What the trials of a study say about previews and promotions.

    Attributes:
        previews: Lineages that were previewed, or raced out; at a refined preview's gate those
            that have come there. Without baselines; failed trials count only where they were
            promoted first.
        kept: Lineages whose own trial holds the claim.
        copies: Lineages of which copies hold the claim -> the number of the first copy.
        begun: Lineages of which a copy has compared its claim with the budget and goes on.
        candidates: Pruned previews with finite scores, of trials that can be copied, whose
            lineage holds no claim.
        steps: By lineage, the training steps of a finetune that was pruned at a rung.
        seconds: By lineage, the seconds of a finetune that has ended.
        longest_seconds: Of all finetunes that came to their end, baselines included; None if
            there is none.
        total: Number of lineages that were previewed, whatever the gate: what caps count.
    """

    previews: frozenset[int]
    kept: frozenset[int]
    copies: Mapping[int, int]
    candidates: tuple[Candidate, ...]
    steps: Mapping[int, int] = field(default_factory=dict)
    seconds: Mapping[int, float] = field(default_factory=dict)
    longest_seconds: float | None = None
    total: int = 0
    begun: frozenset[int] = frozenset()

    @property
    def claims(self) -> frozenset[int]:
        """Lineages that count against the budget."""
        return self.kept | self.copies.keys()


def value_at(gate: Gate) -> Scores:
    """The score of a single-objective study at a gate: the intermediate value at its step."""

    def read(trial: FrozenTrial) -> tuple[float] | None:
        value = trial.intermediate_values.get(gate.step)
        return None if value is None else (value,)

    return read


step_zero = value_at(PREVIEW)
"""The preview's score of a single-objective study: the intermediate value at step 0."""


def preview_metrics(tasks: Sequence[str]) -> Scores:
    """The preview of a study with one objective per task: the attributes `preview_<task>`."""
    keys = [f"preview_{task}" for task in tasks]

    def read(trial: FrozenTrial) -> tuple[float, ...] | None:
        if not all(key in trial.user_attrs for key in keys):
            return None
        values = [trial.user_attrs[key] for key in keys]
        return tuple(math.nan if value is None else float(value) for value in values)

    return read


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


def read_ledger(
    trials: Sequence[FrozenTrial], scores: Scores = step_zero, gate: Gate = PREVIEW
) -> Ledger:
    """Count previews and claims at a gate.

    Not previews: baselines, promoted copies, and failed trials (their retry clones count in their
    place, so a lineage counts once). Trials that went on without a decision, as under another
    pruner, hold a claim: they have been finetuned. At a refined preview's gate, copies that were
    promoted at an earlier one are trials like others; those of a later one have passed it before.
    """
    counts = _Counts(gate)
    for trial in trials:
        counts.add(trial, scores)
    total = len(read_ledger(trials).previews) if gate.step else len(counts.previews)
    return replace(counts.ledger(), total=total)


class LedgerReader:
    """`read_ledger` that remembers the trials before the first unfinished one.

    They can't change any more. The memory only saves time: a fresh reader reads the same ledger.
    """

    def __init__(self) -> None:
        self._settled: dict[tuple[str, Gate], _Counts] = {}

    def read(
        self,
        study_name: str,
        trials: Sequence[FrozenTrial],
        scores: Scores = step_zero,
        gate: Gate = PREVIEW,
    ) -> Ledger:
        """The ledger of all trials of the study, ordered by number."""
        counts = self._count(study_name, trials, scores, gate)
        every = self._count(study_name, trials, step_zero, PREVIEW) if gate.step else counts
        return replace(counts.ledger(), total=len(every.previews))

    def _count(
        self, study_name: str, trials: Sequence[FrozenTrial], scores: Scores, gate: Gate
    ) -> _Counts:
        known = self._settled.get((study_name, gate))
        counts = _Counts(gate) if known is None or not known.begin(trials) else known.copy()
        first = next(
            (i for i in range(counts.n, len(trials)) if not trials[i].state.is_finished()),
            len(trials),
        )
        for trial in trials[counts.n : first]:
            counts.add(trial, scores)
        # Never changed once it stands here: threads share the reader.
        self._settled[study_name, gate] = counts
        counts = counts.copy()
        for trial in trials[first:]:
            counts.add(trial, scores)
        return counts


@dataclass
class _Counts:
    """What `read_ledger` knows of a gate after some trials."""

    gate: Gate
    n: int = 0
    last: FrozenTrial | None = None
    lineages: dict[int, int] = field(default_factory=dict)
    previews: set[int] = field(default_factory=set)
    kept: set[int] = field(default_factory=set)
    standing: dict[int, int] = field(default_factory=dict)  # copies that hold a claim -> lineage
    begun: set[int] = field(default_factory=set)  # of these, those that have compared it
    candidates: dict[int, Candidate] = field(default_factory=dict)  # the first of each lineage
    ended: dict[int, FrozenTrial] = field(default_factory=dict)  # a lineage's latest finetune
    longest: float | None = None

    def begin(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether these are the first ones of the trials given, and not of another study."""
        if self.last is None or self.n > len(trials):
            return self.last is None
        found = trials[self.n - 1]
        return (found.number, found.datetime_complete, found.params) == (
            self.last.number,
            self.last.datetime_complete,
            self.last.params,
        )

    def copy(self) -> _Counts:
        return _Counts(
            self.gate,
            self.n,
            self.last,
            self.lineages.copy(),
            self.previews.copy(),
            self.kept.copy(),
            self.standing.copy(),
            self.begun.copy(),
            self.candidates.copy(),
            self.ended.copy(),
            self.longest,
        )

    def add(self, trial: FrozenTrial, scores: Scores) -> None:
        """Count the next trial, by number: whatever it refers to has been seen."""
        self.n, self.last = self.n + 1, trial
        gate = self.gate
        lineages, previews, kept = self.lineages, self.previews, self.kept
        standing, candidates, ended = self.standing, self.candidates, self.ended
        attrs = trial.user_attrs
        decision = attrs.get(gate.decision)
        source = attrs.get(PROMOTED_FROM)
        took = attrs.get("truth_seconds") if trial.state == TrialState.COMPLETE else None
        if took is not None:
            self.longest = took if self.longest is None else max(self.longest, took)
        lineage = first_attempt(trial)
        if source is not None:
            lineage = lineages.get(int(source), int(source))
        lineages[trial.number] = lineage
        if source is not None and (at := Gate.of_copy(trial).step) >= gate.step:
            if at > gate.step:
                return
            if decision != "prune":
                standing[trial.number] = lineage
                if gate.claim in attrs:
                    self.begun.add(trial.number)
                if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
                    ended[lineage] = trial
            else:  # it gave the claim back, which the attempts that failed before it had held
                for attempt in retry_history(trial):
                    standing.pop(attempt, None)
                    self.begun.discard(attempt)
            return
        if RACED_OUT in attrs and trial.state != TrialState.FAIL and not gate.step:
            previews.add(lineage)  # it was compared and is no candidate
            return
        if BASELINE in attrs or (preview := scores(trial)) is None:
            return
        went_on = trial.state == TrialState.COMPLETE or _last_step(trial) > gate.step
        # A claim without a decision counts while its trial runs; a retry clone makes it anew.
        claiming = trial.state == TrialState.RUNNING and gate.claim in attrs
        undecided = decision is None and trial.state != TrialState.FAIL
        if decision == "promote" or (undecided and (went_on or claiming)):
            kept.add(lineage)
            previews.add(lineage)
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
                ended[lineage] = trial
        elif trial.state != TrialState.FAIL:
            previews.add(lineage)
            pruned = trial.state == TrialState.PRUNED or (
                trial.state == TrialState.RUNNING and decision == "prune"
            )
            if (
                pruned
                and not went_on
                and all(map(math.isfinite, preview))
                and can_be_copied(trial)
            ):
                found = Candidate(trial.number, lineage, tuple(preview))
                candidates.setdefault(lineage, found)

    def ledger(self) -> Ledger:
        copies: dict[int, int] = {}
        for number, lineage in self.standing.items():
            copies.setdefault(lineage, number)
        claims = self.kept | copies.keys()
        return Ledger(
            previews=frozenset(self.previews),
            kept=frozenset(self.kept),
            copies=copies,
            candidates=tuple(c for c in self.candidates.values() if c.lineage not in claims),
            steps={
                lineage: _last_step(trial) - self.gate.step
                for lineage, trial in self.ended.items()
                if trial.state == TrialState.PRUNED and _last_step(trial) > self.gate.step
            },
            seconds={
                lineage: float(trial.user_attrs["truth_seconds"])
                for lineage, trial in self.ended.items()
                if trial.user_attrs.get("truth_seconds") is not None
            },
            longest_seconds=self.longest,
            begun=frozenset(self.standing[number] for number in self.begun),
        )


def decide(
    trials: Sequence[FrozenTrial],
    number: int | None,
    *,
    budget: Budget,
    order: Order,
    scores: Scores = step_zero,
    gate: Gate = PREVIEW,
    ledger: Ledger | None = None,
    coming: int = 0,
) -> tuple[Promote | Prune, ...]:
    """What to promote now, given all trials of the study.

    The free slots of the budget go to the first candidates of the whole history, trial `number`
    and previews pruned long ago alike.

    Args:
        trials: All trials of the study, ordered by number.
        number: The undecided trial whose preview has just been made; None to fill free slots only.
        budget: How many may be promoted.
        order: Which candidate comes first; `best_scores_first` or one's own. Called only when
            there is a free slot.
        scores: A trial's preview; the intermediate value at step 0 by default.
        gate: Where it is decided.
        ledger: That of the trials at the gate, where it has been read already.
        coming: Lineages on their way to the gate; `budget.reserve` slots are kept for each.

    Returns:
        `Promote` for each candidate that gets a slot, the first one first; then, for trial
        `number` if it gets none, `Prune`. Previews that are not finite are never promoted.
    """
    ledger = read_ledger(trials, scores, gate) if ledger is None else ledger
    candidates = list(ledger.candidates)
    claims = ledger.claims
    if number is not None:
        current = _find(trials, number)
        lineage = _lineage(trials, current)
        claims -= {lineage}
        candidates = [c for c in candidates if c.lineage != lineage]
        preview = scores(current)
        if preview is not None and all(map(math.isfinite, preview)):
            candidates.append(Candidate(number, lineage, tuple(preview)))
    free = math.floor(max(0.0, budget.free(ledger, claims) - budget.reserve * coming) + _ROUNDING)
    first = islice(order(candidates), free) if free else ()
    promoted = [Promote(candidate.number) for candidate in first]
    if number is None or Promote(number) in promoted:
        return tuple(promoted)
    return (*promoted, Prune(number))


def count_coming(trials: Sequence[FrozenTrial], before: Ledger, ledger: Ledger) -> int:
    """Lineages that have passed the gate before, and run or wait to come to the next one.

    Args:
        trials: All trials of the study.
        before: The ledger of the gate before.
        ledger: That of the gate.
    """
    live = {_lineage(trials, trial) for trial in trials if not trial.state.is_finished()}
    return len((live & before.claims) - ledger.previews)


def claim_holds(
    trials: Sequence[FrozenTrial],
    number: int,
    budget: Budget,
    scores: Scores = step_zero,
    gate: Gate = PREVIEW,
    ledger: Ledger | None = None,
) -> bool:
    """Whether the claim that trial `number` has just written may stand beside all others.

    Of several workers that write their claims and then read all, the last one to write sees every
    claim that stands. So if each gives way as soon as it sees more claims than slots, never too
    many stand; where more than needed gave way, the slots are filled again by copies. `ledger` is
    that of the trials at the gate, where it has been read already.
    """
    ledger = read_ledger(trials, scores, gate) if ledger is None else ledger
    others = ledger.claims - {_lineage(trials, _find(trials, number))}
    return budget.free(ledger, others) > 0


def is_over_budget(
    trials: Sequence[FrozenTrial],
    trial: FrozenTrial,
    budget: Budget,
    scores: Scores = step_zero,
) -> bool:
    """Whether a promoted copy must give way since the slots are taken by claims before its own.

    Numbers are given out by the storage one at a time, so all workers see one order of copies, and
    of those that were queued at once exactly as many run as there are slots. Trials that kept
    their own claim come before copies, and so do copies that go on already: one may have moved
    back in the order since, where a copy of the same preview died before it. With no claim before
    its own a copy runs in any case: it was queued for a slot, though the previews that opened it
    may have failed since; only a budget of zero, as of a worker started with another one, stops
    it.
    """
    if budget.is_zero:
        return True
    ledger = read_ledger(trials, scores, Gate.of_copy(trial))
    lineage = _lineage(trials, trial)
    first = ledger.copies.get(lineage, trial.number)
    ahead = {other for other, copy in ledger.copies.items() if copy < first}
    ahead = (ahead | ledger.kept | ledger.begun) - {lineage}
    return bool(ahead) and budget.free(ledger, ahead) < 1


def is_duplicate_promotion(trials: Sequence[FrozenTrial], trial: FrozenTrial) -> int | None:
    """The trial that already finetunes the same promotion, or None: run `trial` only if None.

    Two workers may promote the same preview at once. Of copies with one `promoted_from`, the one
    of the lowest number runs, as long as it is alive: WAITING, RUNNING, COMPLETE, or PRUNED at a
    rung after the preview. A copy that failed, or that was pruned at its preview since it gave its
    claim back, leaves the place to the next.

    Args:
        trials: All trials of the study, as `study.get_trials(deepcopy=False)` gives them.
        trial: The trial that is about to be finetuned.

    Returns:
        The number of the living sibling; None where there is none, or `trial` is not a copy.
    """
    source = trial.user_attrs.get(PROMOTED_FROM)
    if source is None:
        return None
    for sibling in trials:
        if (
            sibling.number < trial.number
            and sibling.user_attrs.get(PROMOTED_FROM) == source
            and _is_alive(sibling)
        ):
            return sibling.number
    return None


def _is_alive(copy: FrozenTrial) -> bool:
    gate = Gate.of_copy(copy)
    if copy.user_attrs.get(gate.decision) == "prune" or copy.state == TrialState.FAIL:
        return False
    return copy.state != TrialState.PRUNED or _last_step(copy) > gate.step


def _lineage(trials: Sequence[FrozenTrial], trial: FrozenTrial) -> int:
    source = trial.user_attrs.get(PROMOTED_FROM)
    if source is None:
        return first_attempt(trial)
    found = next((other for other in trials if other.number == source), None)
    return int(source) if found is None else _lineage(trials, found)


def _find(trials: Sequence[FrozenTrial], number: int) -> FrozenTrial:
    if number < len(trials) and trials[number].number == number:
        return trials[number]
    return next(trial for trial in trials if trial.number == number)


def _last_step(trial: FrozenTrial) -> int:
    return max(trial.intermediate_values, default=-1)
