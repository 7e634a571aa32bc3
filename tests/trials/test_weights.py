from __future__ import annotations

import math
import random
import re
import subprocess
import sys

import optuna
import pytest
from hypothesis import given, strategies as st

from optuna_merge.trials import (
    MIN_WEIGHT,
    canonical_weights,
    check_tasks,
    refused_params,
    suggest_weights,
    trial_weights,
    weight_params,
    weight_tasks,
)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.0, 0.0, 0.0], (0.25, 0.25, 0.25, 0.25)),
        ([1, 3], (0.25, 0.75)),
        ([0.7], (1.0,)),
        ([0.0], (1.0,)),
        ([1.0, 0.0, 0.0], (1.0, 0.0, 0.0)),
        ([1e-4, 1.0, 1.0], (0.0, 0.5, 0.5)),
        ([1e308, 1e308], (0.5, 0.5)),
        ([5e-324, 5e-324], (0.5, 0.5)),
        ([1e-3, 0.999], (1e-3, 0.999)),
    ],
)
def test_canonical_weights(values: list[float], expected: tuple[float, ...]) -> None:
    assert canonical_weights(values) == pytest.approx(expected, abs=1e-15)


@given(st.lists(st.floats(0, 1e308, allow_nan=False), min_size=1, max_size=40))
def test_canonical_weights_are_exact_and_stable(values: list[float]) -> None:
    weights = canonical_weights(values)
    shuffled = list(weights)
    random.Random(0).shuffle(shuffled)
    assert sum(weights) == sum(shuffled) == math.fsum(weights) == 1.0
    assert all(w == 0.0 or MIN_WEIGHT <= w <= 1.0 for w in weights)
    assert canonical_weights(weights) == weights
    assert all(type(w) is float for w in weights)


@given(
    st.lists(st.floats(0.01, 1), min_size=2, max_size=8),
    st.floats(1e-6, 1e6),
)
def test_scale_changes_nothing(values: list[float], scale: float) -> None:
    assert canonical_weights([v * scale for v in values]) == pytest.approx(
        canonical_weights(values), abs=1e-12
    )


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf, -math.inf])
def test_bad_weight_is_named(bad: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"'news' is {bad}")):
        canonical_weights([0.5, bad], ["mail", "news"])
    with pytest.raises(ValueError, match="position 1"):
        canonical_weights([0.5, bad])


def test_wrong_length() -> None:
    with pytest.raises(ValueError, match=r"Expected 2 weights.*mail, news.*got 3"):
        canonical_weights([1, 1, 1], ["mail", "news"])
    with pytest.raises(ValueError, match="got 0"):
        canonical_weights([])


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], "got 0"),
        (["a", ""], "non-empty"),
        (["a", "b", "a"], "more than once: a"),
        ("abc", "string 'abc'"),
        ([1, 2], "non-empty string, got 1"),
    ],
)
def test_bad_tasks(tasks: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_tasks(tasks)


def test_suggest_and_params_round_trip() -> None:
    study = optuna.create_study()
    study.enqueue_trial(weight_params({"mail": 1, "news": 3}))
    trial = study.ask()
    assert suggest_weights(trial, ["mail", "news"]) == {"mail": 0.25, "news": 0.75}
    assert list(trial.params) == ["w_mail", "w_news"]
    fixed = optuna.trial.FixedTrial({"w_a": 0.9, "w_b": 0.9})
    assert suggest_weights(fixed, ("a", "b")) == {"a": 0.5, "b": 0.5}


def test_importing_weights_stays_light() -> None:
    code = (
        "import sys, optuna_merge.trials; "
        "assert not {'torch', 'botorch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_tasks_are_those_of_the_first_trial_that_has_weights() -> None:
    def trial(**ranges: tuple[float, float]) -> optuna.trial.FrozenTrial:
        return optuna.create_trial(
            params=dict.fromkeys(ranges, 1.0),
            distributions={
                name: optuna.distributions.FloatDistribution(*r) for name, r in ranges.items()
            },
            value=0.0,
        )

    other = trial(rate=(0, 1), w_decay=(0, 10), w_=(0, 1))
    assert weight_tasks([]) == weight_tasks([other]) == ()
    assert weight_tasks([other, trial(w_b=(0, 1), rate=(0, 1), w_a=(0, 1))]) == ("b", "a")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"w_a": 0.0, "w_b": 1}, None),
        ({"w_b": 0.5, "rate": 7.0}, None),
        ({}, None),
        ({"w_a": 2.0, "w_b": 1.0}, "'w_a' is 2.0, expected a number between 0 and 1"),
        ({"w_b": -0.1}, "'w_b' is -0.1"),
        ({"w_b": math.nan}, "'w_b' is nan"),
        ({"w_b": math.inf}, "'w_b' is inf"),
        ({"w_b": "0.5"}, "'w_b' is '0.5'"),
        ({"w_b": None}, "'w_b' is None"),
        ({"w_a": 0.5, "w_c": 0.5}, "'w_c' is no task's weight; the weights are w_a, w_b"),
        ({"a": 0.5, "b": 0.5}, "'a' is no task's weight"),
    ],
)
def test_enqueued_parameters_that_are_no_weights(
    given: dict[str, object], reason: str | None
) -> None:
    study = optuna.create_study()
    study.enqueue_trial(given)
    found = refused_params(study.trials[0], ["a", "b"])
    assert (found is None) == (reason is None)
    assert reason is None or (found is not None and reason in found)


def test_an_added_trial_with_parameters_that_are_no_weights() -> None:
    uniform = optuna.distributions.FloatDistribution(-1, 3)
    choice = optuna.distributions.CategoricalDistribution([0.25, 0.5])
    waiting = optuna.trial.TrialState.WAITING
    for value, kind, reason in (
        (2.0, uniform, "'w_a' is 2.0"),
        (-0.5, uniform, "'w_a' is -0.5"),
        (0.5, choice, "'w_a' is of Cat"),
    ):
        trial = optuna.create_trial(
            params={"w_a": value}, distributions={"w_a": kind}, state=waiting
        )
        assert reason in str(refused_params(trial, ["a"]))


def test_readers_get_weights_or_none() -> None:
    assert trial_weights({"w_a": 1, "w_b": 3.0, "rate": "x"}, ["a", "b"]) == {"a": 0.25, "b": 0.75}
    for value in (-1.0, math.nan, math.inf, "1", None):
        assert trial_weights({"w_a": 0.5, "w_b": value}, ["a", "b"]) is None
    assert trial_weights({"w_a": 0.5}, ["a", "b"]) is None
