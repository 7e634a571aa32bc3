"""How true the previews have proved: rank correlation of previews and truths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_TRUTHS = 5
"""With fewer pairs a rank correlation says nothing."""


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation with its bootstrap interval.

    Attributes:
        value: Over all pairs, in [-1, 1].
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
    level: float = 0.9,
    resamples: int = 2000,
    seed: int = 0,
) -> RankCorrelation | None:
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
    """
    if len(previews) != len(truths):
        raise ValueError(f"got {len(previews)} previews but {len(truths)} truths")
    count = len(previews)
    x, y = np.asarray(previews, dtype=float), np.asarray(truths, dtype=float)
    if count < MIN_TRUTHS or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    rows = np.random.default_rng(seed).integers(count, size=(resamples, count))
    drawn = [_spearman(x[row], y[row]) for row in rows]
    sound = [value for value in drawn if math.isfinite(value)]
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(sound, [tail, 100 - tail])
    return RankCorrelation(_spearman(x, y), float(low), float(high), count)


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation of the mid-ranks; NaN where one side doesn't vary."""
    from scipy.stats import rankdata

    a, b = rankdata(x), rankdata(y)
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 0 else math.nan
