"""Rules that choose task weights without a preview."""

from __future__ import annotations

import numpy as np
import pytest

from studies.simple_rules import (
    beyond_own_weight,
    doubled,
    explained_by_own_weight,
    fine_points,
    in_turn,
    own_weight_curves,
    proportional,
)


def test_doubling_doubles_a_share_against_the_others() -> None:
    assert doubled([0.25, 0.25, 0.5], 1) == pytest.approx([0.2, 0.4, 0.4])
    assert doubled(doubled([0.5, 0.5], 0), 0) == pytest.approx([0.8, 0.2])


def test_curves_go_through_what_was_finetuned() -> None:
    alone = np.array([[0.9, 0.1, 0.2], [0.3, 0.8, 0.2], [0.1, 0.1, 0.7]])
    uniform = np.array([0.7, 0.6, 0.65])
    weights = np.array([[1, 0, 0], [1 / 3] * 3, [0, 1, 0], [0.5, 0.25, 0.25], [0.6, 0.2, 0.2]])
    found = own_weight_curves(alone, uniform, weights)
    assert found[0] == pytest.approx([0.9, 0.1, 0.2])
    assert found[1] == pytest.approx(uniform)
    assert found[2] == pytest.approx([0.2, 0.8, 0.2])  # the mean of the other tasks' runs
    assert 0.7 < found[3, 0] < found[4, 0] < 0.9
    # Its own weight is all that a task's curve knows.
    swapped = own_weight_curves(alone, uniform, weights[:, [0, 2, 1]])
    assert swapped[:, 0] == pytest.approx(found[:, 0])


def test_what_is_known_beyond_own_weight_is_not_own_weight() -> None:
    rng = np.random.default_rng(0)
    own, other = rng.uniform(size=(2, 60))
    truth = own**2 + 0.3 * other
    assert beyond_own_weight(own**3, truth, own) != pytest.approx(1, abs=0.1)
    assert np.isnan(beyond_own_weight(own, truth, own))  # nothing else is in it
    assert beyond_own_weight(-5 * own + other, truth, own) == pytest.approx(1)
    assert beyond_own_weight(5 * own - other, truth, own) == pytest.approx(-1)
    assert abs(beyond_own_weight(own + rng.normal(size=60), truth, own)) < 0.35
    assert np.isnan(beyond_own_weight(truth[:5], truth[:5], own[:5]))
    assert explained_by_own_weight(own**2, own) == pytest.approx(1)
    assert explained_by_own_weight(other, own) < 0.2
    steps = np.repeat([0.25, 0.5], 5)  # two values: a line, not a cubic
    assert explained_by_own_weight(steps + 0.1 * np.tile([1, -1, 0, 0, 0], 2), steps) > 0.5


def test_the_rest_is_plain() -> None:
    assert proportional([100, 300]) == [0.25, 0.75]
    points = fine_points(3)
    assert points.sum(1) == pytest.approx(1)
    assert points[:3].tolist() == np.eye(3).tolist()
    assert list(in_turn(np.array([0.1, 0.3, 0.3, 0.2]))) == [1, 2, 3, 0]
