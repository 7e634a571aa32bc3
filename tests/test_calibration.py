from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from optuna_merge.calibration import MIN_TRUTHS, rank_correlation


def test_it_is_spearman_s_with_ties() -> None:
    rng = np.random.default_rng(0)
    previews = rng.integers(0, 6, size=30) / 10
    truths = previews + rng.normal(0, 0.2, size=30).round(1)
    found = rank_correlation(list(previews), list(truths))
    assert found is not None
    assert found.value == pytest.approx(spearmanr(previews, truths).statistic)
    assert found.low < found.value < found.high
    assert found.count == 30


@pytest.mark.parametrize("sign", [1, -1])
def test_perfect_order_is_one_in_every_resample(sign: int) -> None:
    previews = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    found = rank_correlation(previews, [sign * p**3 for p in previews])
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((sign, sign, sign))


def test_the_interval_narrows_with_more_pairs_and_widens_with_its_level() -> None:
    def width(count: int, level: float) -> float:
        rng = np.random.default_rng(1)
        x = rng.normal(size=count)
        found = rank_correlation(x, x + rng.normal(size=count), level=level)
        assert found is not None and -1 <= found.low <= found.high <= 1
        return found.high - found.low

    assert width(200, 0.9) < 0.5 * width(20, 0.9)
    assert width(20, 0.5) < width(20, 0.9)


def test_it_is_the_same_for_the_same_seed() -> None:
    values = [0.1, 0.3, 0.2, 0.5, 0.4, 0.7], [0.2, 0.1, 0.3, 0.5, 0.6, 0.4]
    assert rank_correlation(*values) == rank_correlation(*values)
    assert rank_correlation(*values) != rank_correlation(*values, seed=1, resamples=50)


def test_too_few_pairs_say_nothing() -> None:
    few = [0.1 * i for i in range(MIN_TRUTHS)]
    assert rank_correlation(few, few) is not None
    assert rank_correlation(few[1:], few[1:]) is None
    assert rank_correlation([], []) is None
    assert rank_correlation(few, [0.5] * MIN_TRUTHS) is None
    assert rank_correlation([0.5] * MIN_TRUTHS, few) is None


def test_previews_and_truths_come_in_pairs() -> None:
    with pytest.raises(ValueError, match="got 6 previews but 5 truths"):
        rank_correlation([0.1] * 6, [0.1] * 5)
