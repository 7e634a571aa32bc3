"""The mixed data set: shares, order, and how evenly it takes from the tasks."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from optuna_merge.trainers._mixture import Mixture

DATA = {"math": [f"m{i}" for i in range(7)], "chat": [f"c{i}" for i in range(500)], "none": ["n"]}


@pytest.mark.parametrize("seed", range(5))
def test_shares_are_within_binomial_error(seed: int) -> None:
    size, shares = 10_000, {"math": 0.2, "chat": 0.8, "none": 0.0}
    mixture = Mixture(DATA, shares, size, seed)
    found = Counter(mixture[i][0] for i in range(size))
    for letter, share in (("m", 0.2), ("c", 0.8)):
        assert abs(found[letter] - share * size) < 4 * math.sqrt(size * share * (1 - share))
    assert found["n"] == 0


def test_small_data_are_used_evenly() -> None:
    mixture = Mixture(DATA, {"math": 0.2, "chat": 0.8}, 1000, 0)
    found = Counter(mixture[i] for i in range(1000) if mixture[i][0] == "m")
    assert max(found.values()) - min(found.values()) <= 1
    assert len(found) == 7


def test_the_order_is_a_matter_of_the_seed_alone() -> None:
    def order(seed: int) -> list[str]:
        mixture = Mixture(DATA, {"math": 0.5, "chat": 0.5}, 50, seed)
        return [mixture[i] for i in range(len(mixture))]

    assert order(1) == order(1) != order(2)
    assert order(1) != sorted(order(1))
