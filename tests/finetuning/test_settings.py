from __future__ import annotations

import json
import math
from typing import Any

import pytest

from optuna_merge.finetuning import FinetuneSettings
from optuna_merge.finetuning._training import Order, derived_seed


@pytest.mark.parametrize(
    "steps, num_rungs, expected",
    [(7, 3, [3, 5, 7]), (200, 3, [67, 134, 200]), (2, 5, [1, 2]), (9, 1, [9]), (1, 1, [1])],
)
def test_rungs_are_at_equal_distances_and_end_with_the_run(
    steps: int, num_rungs: int, expected: list[int]
) -> None:
    assert FinetuneSettings(steps=steps, num_rungs=num_rungs).rungs() == expected


@pytest.mark.parametrize(
    "decay, expected",
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
    ],
)
def test_the_rate_rises_and_then_falls(decay: Any, expected: list[float]) -> None:
    settings = FinetuneSettings(steps=6, warmup=0.3, decay=decay)
    assert [settings.rate(step) for step in range(6)] == pytest.approx(expected)


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_all_or_nothing_of_a_run_may_be_warm_up(warmup: float) -> None:
    rates = [FinetuneSettings(steps=4, warmup=warmup).rate(step) for step in range(4)]
    assert rates == ([0.25, 0.5, 0.75, 1.0] if warmup else [1.0, 0.75, 0.5, 0.25])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, got -1"),
        ({"num_rungs": 0}, "num_rungs must be at least 1"),
        ({"evaluation_batch_size": 0}, "evaluation_batch_size must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"learning_rate": math.nan}, "learning_rate must be positive, got nan"),
        ({"head_learning_rate": -1.0}, "head_learning_rate must be positive, got -1.0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be positive, got 0.0"),
        ({"warmup": 10}, "warmup is a fraction of the steps, 0 to 1, got 10"),
        ({"decay": "sudden"}, "decay must be linear, cosine or constant, got 'sudden'"),
        ({"optimizer": "sgd"}, "optimizer must be adamw or ivon, got 'sgd'"),
        ({"ess": 0.0}, "ess must be positive, got 0.0"),
        ({"delta": -1.0}, "delta must be positive, got -1.0"),
        ({"initial_h": 0.0}, "initial_h must be positive, got 0.0"),
        (
            {"optimizer": "ivon", "mixed_precision": "fp16"},
            "optimizer='ivon' with mixed_precision='fp16': the scaler .* use 'bf16' or 'no'",
        ),
        ({"mixed_precision": "fp8"}, "mixed_precision: no, bf16 or fp16, got 'fp8'"),
    ],
)
def test_bad_settings_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FinetuneSettings(**change)


def test_every_setting_is_described_as_json() -> None:
    settings = FinetuneSettings(max_grad_norm=math.inf)
    described = settings.describe()
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    assert described.keys() == FinetuneSettings.__dataclass_fields__.keys()


def test_the_order_is_a_pure_function_of_the_step() -> None:
    def fresh() -> Order:
        return Order("red", size=10, batch_size=4, seed=3)

    forwards = [fresh().rows(step) for step in range(30)]
    order = fresh()
    steps = jumping_steps(30)
    assert [order.rows(step) for step in steps] == [forwards[step] for step in steps]


def jumping_steps(count: int) -> list[int]:
    """Steps in an order that jumps between epochs, each twice."""
    return [(7 * i) % count for i in range(count)] + list(reversed(range(count)))


@pytest.mark.parametrize("size, batch_size", [(10, 4), (10, 10), (3, 11), (1, 2)])
def test_every_epoch_sees_every_example_once_in_an_order_of_its_own(
    size: int, batch_size: int
) -> None:
    order = Order("red", size, batch_size, seed=0)
    seen = [row for step in range(6 * size) for row in order.rows(step)]
    epochs = [tuple(seen[start : start + size]) for start in range(0, 5 * size, size)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert len(set(epochs)) > 1 or size == 1


def test_tasks_and_seeds_are_shuffled_apart() -> None:
    rows = {
        tuple(Order(task, 100, 50, seed).rows(0)) for task in ("red", "blue") for seed in (0, 1)
    }
    assert len(rows) == 4


def test_seeds_are_the_same_on_every_machine() -> None:
    assert derived_seed("step", 0, 1) == 6437427638298519910
    assert derived_seed("step", 0, 1) != derived_seed("step", 1, 0)
    assert all(0 <= derived_seed(i) < 2**63 for i in range(100))


def test_rungs_at_given_steps() -> None:
    assert FinetuneSettings(steps=10, rung_steps=(1, 4, 10)).rungs() == (1, 4, 10)
    for wrong in ((), (4, 4, 10), (0, 10), (4, 9)):
        with pytest.raises(ValueError, match="rung_steps must be positive, rise, and end at"):
            FinetuneSettings(steps=10, rung_steps=wrong)
