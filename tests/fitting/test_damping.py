from __future__ import annotations

import math

import pytest
import torch

from optuna_merge.fitting import MULTIPLES, trial_weightings
from optuna_merge.fitting._damping import candidates, choose
from optuna_merge.posteriors import DiagonalGaussian


def undamped(precision: dict[str, torch.Tensor]) -> DiagonalGaussian:
    return DiagonalGaussian(precision, precision)


def test_candidates_are_multiples_of_the_mean_curvature() -> None:
    curvatures = {
        "red": undamped({"a": torch.tensor([1.0, 3.0]), "b": torch.zeros(2, 1)}),
        "blue": undamped({"a": torch.tensor([0.0, 8.0]), "b": torch.zeros(2, 1)}),
    }
    assert candidates(curvatures) == pytest.approx([1.5 * multiple for multiple in MULTIPLES])


def test_small_curvatures_are_added_up_in_double_precision() -> None:
    curvatures = {"red": undamped({"a": torch.cat([torch.ones(1), torch.full((1 << 20,), 1e-8)])})}
    expected = (1 + (1 << 20) * 1e-8) / ((1 << 20) + 1)
    assert candidates(curvatures)[MULTIPLES.index(1.0)] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_curvature_that_is_zero_everywhere_is_named(value: float) -> None:
    curvatures = {"red": undamped({"a": torch.full((2,), value)})}
    with pytest.raises(ValueError, match=r"the curvature of tasks \['red'\] is zero everywhere"):
        candidates(curvatures)


@pytest.mark.parametrize(
    "losses, expected",
    [
        ({1.0: 0.5, 2.0: 0.4, 3.0: 0.6}, 2.0),
        ({1.0: 0.4, 2.0: 0.4, 3.0: 0.6}, 2.0),
        ({1.0: math.inf, 2.0: 0.7, 3.0: math.inf}, 2.0),
        ({1.0: math.inf, 2.0: math.inf}, 2.0),
    ],
)
def test_the_smallest_loss_is_chosen_and_of_equal_ones_the_largest_damping(
    losses: dict[float, float], expected: float
) -> None:
    value, sweep = choose(list(losses), losses.__getitem__)
    assert value == expected
    assert sweep == losses


def test_merges_are_judged_inside_the_simplex() -> None:
    assert trial_weightings(["a"]) == [{"a": 1.0}]
    weightings = trial_weightings(["a", "b", "c"])
    assert weightings[0] == dict.fromkeys("abc", 1 / 3)
    assert [max(w, key=lambda task: w[task]) for w in weightings[1:]] == ["a", "b", "c"]
    for weights in weightings:
        assert list(weights) == ["a", "b", "c"]
        assert sum(weights.values()) == pytest.approx(1.0)
        assert min(weights.values()) > 0.1
