"""Statistics of pairs (preview, truth), with percentile-bootstrap intervals.

A resample of n pairs is a vector of n counts: how often each pair was drawn. Each statistic is
written for counts, `resamples x n`, so that all resamples are a few matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Statistic = Callable[[Array, Array, Array], Array]
"""From previews `n`, truths `n` and counts `B x n` to one value per row, NaN where undefined."""

MIN_TRUTHS = 5
"""With fewer pairs of a preview and a truth no verdict is given."""

LEVEL = 0.9
"""Coverage of the intervals."""

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A statistic with its bootstrap interval.

    Attributes:
        value: Over all pairs.
        low: Lower end of the interval.
        high: Upper end of the interval.
        count: Number of pairs.
    """

    value: float
    low: float
    high: float
    count: int


def rank_correlation(
    previews: Sequence[float],
    truths: Sequence[float],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate | None:
    """Spearman's rank correlation of previews and truths, with a percentile-bootstrap interval.

    Args:
        previews: Preview values.
        truths: Truths at the same weights.
        level: Coverage of the interval.
        resamples: Bootstrap samples of pairs.
        seed: Of the bootstrap.

    Returns:
        None if there are fewer than `MIN_TRUTHS` pairs or one side doesn't vary.

    Raises:
        ValueError: sequences of different lengths.

    Examples:
        >>> found = rank_correlation([0.1, 0.2, 0.3, 0.4, 0.5], [0.2, 0.1, 0.3, 0.4, 0.6])
        >>> round(found.value, 3), found.count
        (0.9, 5)
    """
    x, y = paired(previews, truths)
    if len(x) < MIN_TRUTHS:
        return None
    counts = bootstrap_counts(len(x), resamples, seed)
    return estimate(spearman, x, y, counts, level)


def paired(previews: Sequence[float], truths: Sequence[float]) -> tuple[Array, Array]:
    """Both as arrays; raise `ValueError` where their lengths differ."""
    if len(previews) != len(truths):
        raise ValueError(f"got {len(previews)} previews but {len(truths)} truths")
    return np.asarray(previews, dtype=float), np.asarray(truths, dtype=float)


def bootstrap_counts(n: int, resamples: int, seed: int) -> Array:
    """How often each of `n` pairs is drawn in each resample, `resamples x n`."""
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    return drawn.astype(float)


def estimate(
    statistic: Statistic, x: Array, y: Array, counts: Array, level: float
) -> Estimate | None:
    """The statistic of all pairs and its interval; None where it is undefined."""
    value = float(statistic(x, y, np.ones((1, len(x))))[0])
    drawn = statistic(x, y, counts)
    drawn = drawn[np.isfinite(drawn)]
    if not np.isfinite(value) or not len(drawn):
        return None
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Estimate(value, float(low), float(high), len(x))


def bias(x: Array, y: Array, counts: Array) -> Array:
    """Mean of truth minus preview."""
    return np.asarray(counts @ (y - x) / counts.sum(1))


def slope(x: Array, y: Array, counts: Array) -> Array:
    """Least-squares slope of the truths over the previews."""
    n = counts.sum(1)
    x, y = x - x.mean(), y - y.mean()
    mean_x, mean_y = counts @ x / n, counts @ y / n
    covariance = counts @ (x * y) / n - mean_x * mean_y
    variance = counts @ (x * x) / n - mean_x**2
    return _ratio(covariance, np.where(variance > 1e-12 * (x @ x), variance, 0.0))


def spearman(x: Array, y: Array, counts: Array) -> Array:
    """Pearson's correlation of mid-ranks: centred and doubled they are pairs below less above."""
    a, b = counts @ _signs(x).T, counts @ _signs(y).T
    square = (counts * a * a).sum(1) * (counts * b * b).sum(1)
    return _ratio((counts * a * b).sum(1), np.sqrt(square))


def kendall(x: Array, y: Array, counts: Array) -> Array:
    """Kendall's tau-b; pairs drawn more than once are ties with themselves."""
    a, b = _signs(x), _signs(y)

    def total(matrix: Array) -> Array:
        return np.asarray(((counts @ matrix) * counts).sum(1))

    return _ratio(total(a * b), np.sqrt(total(np.abs(a)) * total(np.abs(b))))


def _signs(values: Array) -> Array:
    return np.asarray(np.sign(values[:, None] - values))


def _ratio(numerator: Array, denominator: Array) -> Array:
    undefined = np.full_like(numerator, np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator > 0)
