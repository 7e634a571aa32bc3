from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from optuna_merge.goals import Score, make_score

METRICS = {"red": 0.6, "blue": 0.9, "green": 0.75}
ALONE = {"red": 0.8, "blue": 0.9, "green": 0.5}


@pytest.mark.parametrize(
    "choice, expected",
    [
        ("mean", 0.75),
        ("relative", (0.75 + 1.0 + 1.5) / 3),
        ("worst", 0.6),
        ("worst_relative", 0.75),
        ("target:blue", 0.9),
    ],
)
def test_scores_by_name(choice: str, expected: float) -> None:
    score = make_score(choice, list(METRICS))
    assert score(METRICS, ALONE) == pytest.approx(expected)
    assert score.name == choice
    assert score.maximize


@pytest.mark.parametrize("choice, expected", [("worst", 0.9), ("worst_relative", 1.5)])
def test_the_worst_of_metrics_to_be_minimised_is_the_largest(choice: str, expected: float) -> None:
    score = make_score(choice, list(METRICS), greater_is_better=False)
    assert score(METRICS, ALONE) == pytest.approx(expected)
    assert not score.maximize


def product(metrics: Mapping[str, float], power: float = 1.0) -> float:
    return math.prod(metrics.values()) ** power


def test_any_function_of_the_metrics_is_a_score() -> None:
    score = make_score(product, list(METRICS))
    assert score(METRICS, ALONE) == pytest.approx(0.405)
    assert score.name == "product"


def test_names_of_functions_hold_no_address() -> None:
    """They stand in the fingerprint, which must be the same in every process."""
    score = make_score(functools.partial(product, power=0.5), list(METRICS))
    assert score(METRICS, ALONE) == pytest.approx(math.sqrt(0.405))
    assert "0x" not in score.name


def test_a_score_of_your_own_says_its_direction() -> None:
    own = Score("regret", lambda metrics, alone: alone["red"] - metrics["red"], maximize=False)
    assert make_score(own, list(METRICS)) is own
    assert own(METRICS, ALONE) == pytest.approx(0.2)


@pytest.mark.parametrize("alone", [0.0, -0.5, math.nan])
@pytest.mark.parametrize("choice", ["relative", "worst_relative"])
def test_ratios_need_positive_metrics(choice: str, alone: float) -> None:
    """With negative ones, such as minus an error, a worse metric would be a larger ratio."""
    score = make_score(choice, ["red", "blue"])
    with pytest.raises(ValueError, match=f"above zero for task 'blue' alone, got {alone:g}"):
        score({"red": 0.5, "blue": -1.0}, {"red": 0.5, "blue": alone})


@pytest.mark.parametrize(
    "choice, message",
    [
        (
            "median",
            r"score must be one of \['mean', 'relative', 'worst', 'worst_relative'\], 't",
        ),
        (
            "target:black",
            r"score 'target:black': no task 'black' among \['red', 'blue', 'green'\]",
        ),
        ("", "score must be one of .*, got ''"),
    ],
)
def test_bad_choices_are_named(choice: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_score(choice, list(METRICS))


@pytest.mark.parametrize("choice", ["mean", "relative", "worst", "worst_relative", "target:blue"])
@pytest.mark.parametrize("greater", [True, False])
def test_many_points_at_once_are_as_one_by_one(choice: str, greater: bool) -> None:
    score = make_score(choice, list(METRICS), greater_is_better=greater)
    points = np.random.default_rng(0).uniform(0.1, 0.9, (4, 5, 3))
    found = score.over(points, ALONE)
    assert found.shape == (4, 5)
    for row in np.ndindex(4, 5):
        assert found[row] == pytest.approx(score(dict(zip(ALONE, points[row])), ALONE))


def test_functions_that_take_numbers_only_are_called_point_by_point() -> None:
    score = make_score(
        lambda m: min(m.values()) if m["red"] > 0.5 else math.log(m["red"]), ["red"]
    )
    found = score.over(np.array([[0.2, 0.3, 0.4], [0.9, 0.8, 0.7]]), ALONE)
    assert found.tolist() == pytest.approx([math.log(0.2), 0.7])
