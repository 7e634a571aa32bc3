"""Which preview is worth the next finetune: candidates by the posterior of their truth.

A pure function of the trials and the seed, as `decide` wants it. On machines whose arithmetic
differs in the last digit two all but equal candidates may change places, and two workers may then
queue different copies for one slot; each copy compares its claim with the budget before it runs,
so the budget holds and only the choice between equals is left to chance.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from optuna.trial import TrialState

from optuna_merge import surrogate
from optuna_merge.calibration import Estimate, rank_correlation, score_pairs
from optuna_merge.goals import total_violation
from optuna_merge.pruners._decision import Order, best_fronts_first, best_scores_first
from optuna_merge.pruners._ledger import Candidate
from optuna_merge.surrogate import Aim
from optuna_merge.trials import History, Record, Series

_logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float64]

MIN_TRUTHS = 2
"""With fewer truths the preview decides."""

_ENOUGH = 8  # truths; of fewer the interval nearly always includes zero
_TEACHING = 4  # while no correlation shows, every fourth promotion is for what it teaches
_MAX_PAIRS = 200  # the latest ones tell whether previews prove true
_RESAMPLES = 500
_NEAR = 0.02  # largest difference of a weight
_MAX_CANDIDATES = 1500


def score_correlation(records: Sequence[Record]) -> Estimate | None:
    """How previews of the score rank its truths, where no weight is zero; None of less than 8."""
    previews, truths = score_pairs(records)
    if len(truths) < _ENOUGH:
        return None
    return rank_correlation(previews[-_MAX_PAIRS:], truths[-_MAX_PAIRS:], resamples=_RESAMPLES)


def most_promising_previews(aim: Aim, history: History) -> Order:
    """Order by the previews: those that satisfy the constraints, then those that miss them least.

    Among equals the best score comes first. Without previews of metrics nothing is known violated.
    """
    best_first = best_scores_first(aim.maximize[0])
    if len(aim.maximize) > 1:
        best_first = best_fronts_first(aim.maximize, aim.reference)
    if aim.constraints is None:
        return best_first
    metrics = {r.number: r.preview_metrics for r in history.records}
    nothing = (math.nan,) * len(history.tasks)

    def violation(candidate: Candidate) -> float:
        seen = metrics.get(candidate.number, nothing)
        if all(map(math.isnan, seen)):
            return 0.0
        assert aim.constraints is not None
        return float(total_violation(aim.constraints(np.array(seen))))

    return lambda candidates: sorted(best_first(candidates), key=violation)  # a stable sort


def most_promising_truths(
    candidates: Sequence[Candidate], history: History, *, aim: Aim, n_promoted: int, seed: int = 0
) -> Iterator[Candidate]:
    """Candidates in the order in which they are to be finetuned; each is found when asked for.

    The first has the largest expected improvement of the truth, as `PromotionPruner` says; each
    next one counts those before it as pending, as all finetunes under way. Weights that are
    finetuned already come last, and so do those within 0.02 of a finetune under way, whose truth
    will tell more about them. Of more than 1,500 candidates the best and the latest previews and
    others far from them are compared; the rest come last, and so do trials without task weights.
    """
    by_preview = most_promising_previews(aim, history)
    weights = {record.number: record.weights for record in history.records}
    placed = [c for c in by_preview(candidates) if weights.get(c.number)]
    posterior = Posterior(history, aim, seed)
    if not placed or posterior.n_truths < MIN_TRUTHS:
        yield from by_preview(candidates)
        return
    by_number = sorted(range(len(placed)), key=lambda i: placed[i].number)
    compared = surrogate.spread_subset(
        np.array([weights[placed[i].number] for i in by_number]),
        -np.array(by_number, dtype=float),
        _MAX_CANDIDATES,
    )
    left = [placed[i] for i in sorted(by_number[j] for j in compared)]
    first = set(left)
    others = [c for c in by_preview(candidates) if c not in first]
    pending = [r.weights for r in history.records if r.is_finetuning and r.weights]
    done = {r.weights for r in history.records if r.state == TrialState.COMPLETE}
    while left:
        points = np.array([weights[c.number] for c in left])
        coming = np.array(pending, dtype=float).reshape(-1, points.shape[1])
        gaps = np.abs(points[:, None] - coming).max(axis=2).min(axis=1, initial=1.0)
        late = (gaps < _NEAR) | [weights[c.number] in done for c in left]
        promise = posterior.promise(points, coming, n_promoted)
        best = left.pop(int(np.argmax(np.where(late, -np.inf, promise))))
        yield best
        pending.append(weights[best.number])
        n_promoted += 1
    yield from others


class Posterior:
    """What finetunes promise, given the finetunes that are pending."""

    def __init__(self, history: History, aim: Aim, seed: int) -> None:
        self._aim, self._seed = aim, seed
        self._values, self._metrics = aim.values(history), aim.metrics(history)
        self.n_truths = min(len(values.truths) for values in self._values)
        if min((len(m.truths) for m in self._metrics), default=0) < MIN_TRUTHS:
            self._metrics = []
        self._correlation = score_correlation(history.records)  # none with several objectives

    def promise(self, weights: Array, pending: Array, n_promoted: int) -> Array:
        """A number per row of `n x T`, larger is better; `pending` is `k x T`."""
        if self._spreads_out(n_promoted):
            model = surrogate.model_of(self._aim, *self._beside(pending))
            return model.predict(weights)[1]
        return self.improvement(pending, n_promoted, sided=True)(weights)

    def improvement(
        self, pending: Array, n_promoted: int, *, sided: bool = False
    ) -> surrogate.Improvement:
        """What a finetune promises; `sided`: by a model that trusts the previews or doesn't."""
        rng = np.random.default_rng([self._seed, n_promoted])
        series = self._beside(pending)
        return surrogate.improvement(self._aim, *series, rng, coming=pending, sided=sided)

    def _beside(self, pending: Array) -> tuple[list[Series], list[Series]]:
        """Values and metrics, with these finetunes under way."""
        values = [replace(series, pending=pending) for series in self._values]
        return values, [replace(series, pending=pending) for series in self._metrics]

    def _spreads_out(self, n_promoted: int) -> bool:
        """Whether this promotion is for what it teaches; every fourth at most.

        Truths that are all near the optimum correlate with nothing, however true the previews are.
        """
        found = self._correlation
        if found is None or n_promoted % _TEACHING:
            return False
        if found.low > 0 or found.high < 0:
            return False
        _logger.warning(
            "No evidence yet that previews tell good weights from bad ones (rank correlation "
            "%.2f to %.2f, %d truths): this finetune is chosen for what it teaches.",
            found.low,
            found.high,
            found.count,
        )
        return True
