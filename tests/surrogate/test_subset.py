from __future__ import annotations

import numpy as np
import pytest

from optuna_merge.surrogate import spread_subset


def test_spread_subset_of_thousands() -> None:
    rng = np.random.default_rng(0)
    weights, values = rng.dirichlet(np.ones(3), 9000), rng.normal(size=9000)
    chosen = spread_subset(weights, values, 300)
    assert len(set(chosen.tolist())) == 300
    assert {int(np.argmax(values)), 8999} <= set(chosen.tolist())
    probes = weights[::9, None]
    gap, gap_of_random = (
        np.abs(probes - weights[some]).max(axis=2).min(axis=1).max()
        for some in (chosen, slice(300))
    )
    assert gap < gap_of_random


@pytest.mark.parametrize("n", [3, 30, 299])
def test_spread_subset(n: int) -> None:
    rng = np.random.default_rng(0)
    weights, values = rng.dirichlet(np.ones(4), 300), rng.normal(size=300)
    weights[:50] = weights[0]
    chosen = spread_subset(weights, values, n)
    assert len(chosen) == len(set(chosen.tolist())) == n
    assert (np.diff(chosen) > 0).all()
    assert int(np.argmax(values)) in chosen
    assert 299 in chosen
    np.testing.assert_array_equal(chosen, spread_subset(weights, values, n))
    np.testing.assert_array_equal(spread_subset(weights, values, 300), np.arange(300))
