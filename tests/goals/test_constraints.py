from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from optuna_merge.goals import Constraint, Limits, make_constraints, total_violation

ALONE = {"red": 0.8, "blue": 0.5}
BOTH_UP = {"red": True, "blue": True}
BLUE_DOWN = {"red": True, "blue": False}


@pytest.mark.parametrize(
    "constraint, senses, limit",
    [
        (Constraint("red", of_alone=0.95), BOTH_UP, (1.0, 0.76)),
        (Constraint("blue", of_alone=0.5), BLUE_DOWN, (-1.0, 1.0)),  # at most twice the error
        (Constraint("red", at_least=0.6), BOTH_UP, (1.0, 0.6)),
        (Constraint("blue", at_least=-0.6), BLUE_DOWN, (1.0, -0.6)),
        (Constraint("blue", at_most=0.3), BLUE_DOWN, (-1.0, 0.3)),
        (Constraint("red", of_alone=1.2), BOTH_UP, (1.0, 0.96)),
    ],
)
def test_limits_follow_the_metric_s_direction(
    constraint: Constraint, senses: dict[str, bool], limit: tuple[float, float]
) -> None:
    found = constraint.limit(ALONE, greater_is_better=senses[constraint.task])
    assert found == pytest.approx(limit)


def test_names_say_what_is_asked() -> None:
    assert Constraint("red", of_alone=0.95).name == "red_of_alone_0.95"
    assert Constraint("red", at_least=1e-7).name == "red_at_least_1e-07"
    assert Constraint("red", at_most=-2).name == "red_at_most_-2"


def limits(*constraints: Constraint, senses: dict[str, bool] = BOTH_UP) -> Limits:
    return Limits.of(constraints, ALONE, senses)


def test_values_of_zero_or_less_are_feasible() -> None:
    found = limits(Constraint("blue", at_most=0.3), Constraint("red", of_alone=0.95))
    metrics = np.array([[[0.76, 0.3], [0.8, 0.2]], [[0.7, 0.3], [0.8, 0.5]]])
    expected = [[[0.0, 0.0], [-0.1, -0.04]], [[0.0, 0.06], [0.2, -0.04]]]
    np.testing.assert_allclose(found(metrics), expected, atol=1e-12)
    np.testing.assert_allclose(total_violation(found(metrics)), [[0, 0], [0.06, 0.2]], atol=1e-12)
    assert found.values({"red": 0.7, "blue": math.nan}) == {
        "blue_at_most_0.3": math.inf,
        "red_of_alone_0.95": pytest.approx(0.06),
    }
    assert total_violation(np.array([math.nan, -1.0])) == math.inf
    assert found.describe() == {
        "blue_at_most_0.3": {"task": "blue", "at_most": 0.3},
        "red_of_alone_0.95": {"task": "red", "at_least": pytest.approx(0.76)},
    }


def test_one_number_is_for_every_task() -> None:
    expected = (Constraint("red", of_alone=0.9), Constraint("blue", of_alone=0.9))
    assert make_constraints(0.9, ["red", "blue"]) == expected
    assert make_constraints((), ["red"]) == ()


@pytest.mark.parametrize("alone", [0.0, -0.2, math.nan])
def test_a_share_needs_a_metric_above_zero(alone: float) -> None:
    with pytest.raises(ValueError, match=f"above zero for task 'red' alone, got {alone:g}; use"):
        Constraint("red", of_alone=0.9).limit({"red": alone}, greater_is_better=True)


BAD: list[tuple[Any, type[Exception], str]] = [
    (
        lambda: Constraint("red"),
        ValueError,
        "exactly one of of_alone, at_least and at_most, got n",
    ),
    (
        lambda: Constraint("red", at_least=0.1, at_most=0.2),
        ValueError,
        "'red' needs exactly one of of_alone, at_least and at_most, got at_least, at_most",
    ),
    (
        lambda: Constraint("red", of_alone=0),
        ValueError,
        "of_alone must be a number above zero, got",
    ),
    (lambda: Constraint("red", at_least=math.nan), ValueError, "at_least must be a finite number"),
    (
        lambda: make_constraints([Constraint("green", at_least=0)], ["red"]),
        ValueError,
        "constraint 'green_at_least_0': no task 'green' among ['red']",
    ),
    (
        lambda: make_constraints([Constraint("red", at_least=0)] * 2, ["red"]),
        ValueError,
        "constraint 'red_at_least_0' is given more than once",
    ),
    (lambda: make_constraints(["red"], ["red"]), TypeError, "or a sequence of Constraint, got ["),
    (lambda: make_constraints(True, ["red"]), TypeError, "or a sequence of Constraint, got True"),
    (lambda: make_constraints(-0.5, ["red"]), ValueError, "of_alone must be a number above zero"),
]


@pytest.mark.parametrize("make, error, message", BAD)
def test_bad_constraints_are_named(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make()
