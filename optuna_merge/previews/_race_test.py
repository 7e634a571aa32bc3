"""Whether a preview that has seen a part of its examples can still reach a score. Plain NumPy.

The score of all N examples is asked for, so nothing is inferred about data beyond them: the error
of what is seen so far has the finite population's factor and vanishes at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student_t

Array = npt.NDArray[np.float64]
Score = Callable[[Array], Array]

MIN_EXAMPLES = 8
_LINEAR = 0.1  # how far from linear, relative to the error, a score may be


@lru_cache(maxsize=1024)
def _quantile(level: float, freedom: float) -> float:
    return float(student_t.isf(level, freedom))


@dataclass(frozen=True)
class RaceEstimate:
    """Three numbers a task.

    Attributes:
        means: Estimate of the metric on all examples.
        errors: Its standard error.
        factors: 1 / n - 1 / N.
        units: How much an example may differ from the reference's.
        steps: What one example could change of the mean.
    """

    means: Array
    errors: Array
    factors: Array
    units: Array
    steps: Array


@dataclass(frozen=True)
class RaceTest:
    """A sequential test of "the score of all examples reaches the bar", one-sided.

    After n of a task's N examples its metric is estimated by the difference estimator (Cochran,
    Sampling Techniques, 1977, section 7.2): the reference's metric over all N, which is known,
    plus the mean difference d of the candidate and the reference on the n. Its variance is
    mean(d^2) (1 / n - 1 / N), the second moment about zero standing for the variance: the
    statistic is then self-normalised, which keeps it sub-Gaussian for symmetric d, whatever their
    tails (Efron, Student's t-Test under Symmetry Conditions, JASA 64, 1969); for 0/1 values it is
    McNemar's test. As in that test's continuity correction, the estimate is raised by what one
    example could do, u / n, with u the range of the reference's values, or max |d| if larger.
    And as in score tests the variance is at least what reaching the bar implies: a gap x that
    differences of at most u make up has a variance of at least x u (1 / n - 1 / N), so x must be
    above z^2 u (1 / n - 1 / N). So a candidate that has not differed from the reference yet is
    not taken for its equal.

    The score is linearised at the estimate. Where it isn't linear within the errors, as the worst
    of several metrics, it is bounded instead by its value where every metric is raised to the
    upper end of its own interval (Bonferroni over tasks); a score is expected to get no worse
    when a metric gets better.

    A gain that only shows in rare examples, each of great weight, can't be seen before they are:
    for squared errors with such outliers the error rate is not kept.

    The error rate is split evenly over the looks (Bonferroni), so the chance that a candidate is
    given up that would have reached the bar is at most `alpha`, up to the approximation by
    Student's t. Fewer than 8 examples of a task decide nothing.

    Attributes:
        references: Per task, the reference's values of all examples (NaN-free), race order.
        bar: The score to reach.
        score: From metrics `... x T` to scores `...`.
        better: Per task 1.0 where a larger metric is better, else -1.0.
        maximize: Whether a larger score is better.
        alpha: Error rate of the whole race.
        looks: How often the test is asked.
    """

    references: Sequence[Array]
    bar: float
    score: Score
    better: Sequence[float]
    maximize: bool
    alpha: float
    looks: int

    def estimate(self, values: Sequence[Array]) -> RaceEstimate:
        """Each task's metric on all examples, given the values of its first ones."""
        counts = np.array([len(v) for v in values], dtype=float)
        sizes = np.array([len(r) for r in self.references], dtype=float)
        differences = [v - r[: len(v)] for v, r in zip(values, self.references)]
        moments = np.array([np.square(d).mean() for d in differences])
        factors = np.clip(1 / counts - 1 / sizes, 0, None)
        units = np.array(
            [max(np.ptp(r), np.abs(d).max()) for r, d in zip(self.references, differences)]
        )
        return RaceEstimate(
            means=np.array([r.mean() + d.mean() for r, d in zip(self.references, differences)]),
            errors=np.sqrt(moments * factors),
            factors=factors,
            units=units,
            steps=units / counts,
        )

    def is_lost(self, values: Sequence[Array]) -> bool:
        """Whether the bar is out of reach, given the values of each task's first examples."""
        fewest = min(map(len, values))
        if fewest < MIN_EXAMPLES:
            return False
        found = self.estimate(values)
        if not np.isfinite(found.means).all():
            return False  # the full preview will tell, and is not finite either
        if not found.units.all():
            return False  # nothing is known of how much examples differ
        return self._below(found, fewest - 1)

    def _below(self, found: RaceEstimate, freedom: float) -> bool:
        means, errors = found.means, found.errors
        bar, level = self.bar if self.maximize else -self.bar, self.alpha / self.looks
        here = self._scores(means)
        if not here < bar:
            return False
        quantile = _quantile(level, freedom)
        floors = quantile**2 * found.units * found.factors
        width = np.maximum(quantile * errors + found.steps, floors)
        half = np.diag(width) / 2
        gradient = (self._scores(means + half) - self._scores(means - half)) / width
        step = float(np.abs(gradient * found.steps).max())
        slack = max(
            quantile * math.sqrt(float(np.square(gradient * errors).sum())) + step,
            float(np.abs(gradient * floors).max()),
        )
        moves = np.concatenate([2 * half, -2 * half, [width, -width]])
        curved = np.abs(self._scores(means + moves) - here - moves @ gradient).max()
        if curved <= _LINEAR * slack:
            return bool(here + slack < bar)
        quantile = _quantile(level / len(means), freedom)
        floors = quantile**2 * found.units * found.factors
        width = np.maximum(quantile * errors + found.steps, floors)
        return bool(self._scores(means + np.asarray(self.better) * width) < bar)

    def _scores(self, metrics: Array) -> Array:
        """Larger is better."""
        return self.score(metrics) if self.maximize else -self.score(metrics)
