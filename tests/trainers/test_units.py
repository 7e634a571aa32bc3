"""Units of weights: what a program's shares must be for weights on averaged losses."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from trainer_helpers import MakeTrainer, llama, pad

from optuna_merge.trainers import WeightUnit

WEIGHTS = {"short": 0.3, "long": 0.7}


@pytest.mark.parametrize("kind", ["losses", "examples", "tokens"])
def test_without_label_tokens_weights_are_given_as_they_are(kind: str) -> None:
    unit = WeightUnit(kind)  # type: ignore[arg-type]
    assert unit.converted(WEIGHTS) == WEIGHTS
    assert "equal the task weights" in str(unit)


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_tasks_have_their_weight_of_the_tokens_of_a_batch(batch: int) -> None:
    lengths = {"short": [2.0, 3.0], "long": [5.0, 30.0, 7.0]}
    shares = WeightUnit("examples", lengths, batch).converted(WEIGHTS)
    expected = dict.fromkeys(WEIGHTS, 0.0)
    examples = [(task, n, shares[task] / len(of)) for task, of in lengths.items() for n in of]
    for drawn in itertools.combinations_with_replacement(examples, batch):
        count = math.factorial(batch)
        for example in set(drawn):
            count //= math.factorial(drawn.count(example))
        chance = count * math.prod(p for _, _, p in drawn)
        for task, n, _ in drawn:
            expected[task] += chance * n / sum(m for _, m, _ in drawn)
    assert expected == pytest.approx(WEIGHTS, abs=1e-6)


def test_lengths_count_for_nothing_in_batches_of_one_and_fully_in_large_ones() -> None:
    lengths = {"short": [10.0], "long": [30.0]}
    assert WeightUnit("examples", lengths, 1).converted(WEIGHTS) == pytest.approx(WEIGHTS)
    large = WeightUnit("examples", lengths).converted(WEIGHTS)
    assert large["short"] / large["long"] == pytest.approx(0.3 / 0.7 * 3)
    nearly = WeightUnit("examples", lengths, 5000).converted(WEIGHTS)
    assert nearly == pytest.approx(large, abs=1e-3)


def test_the_expected_gradient_is_the_weighted_mean_of_the_tasks() -> None:
    """Of the Trainer's own loss, over all batches that it can draw; for other shares it isn't."""

    def example(*ids: int) -> dict[str, list[int]]:
        mask = [1] * (len(ids) + 1)
        return {"input_ids": [4, *ids], "labels": [-100, *ids], "attention_mask": mask}

    examples = {
        "short": [example(5, 6), example(8, 5)],
        "long": [example(7, 7, 7, 7, 7, 7), example(9, 10, 9, 10, 9, 5)],
    }
    torch.manual_seed(0)
    trainer = MakeTrainer({}, llama, more={"data_collator": pad})("unused")
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]

    def gradient(rows: list[dict[str, list[int]]]) -> Tensor:
        (batch,), count = trainer.get_batch_samples(iter([pad(rows)]), 1, torch.device("cpu"))
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=count)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    def expected(shares: dict[str, float]) -> Tensor:
        each = [(shares[task] / len(rows), row) for task, rows in examples.items() for row in rows]
        return sum(  # type: ignore[return-value]
            p * q * gradient([first, second]) for p, first in each for q, second in each
        )

    wanted = sum(
        WEIGHTS[task] * gradient([row]) / len(rows)
        for task, rows in examples.items()
        for row in rows
    )
    unit = WeightUnit("examples", {"short": [2, 2], "long": [6, 6]}, 2)
    torch.testing.assert_close(expected(unit.converted(WEIGHTS)), wanted, rtol=1e-4, atol=1e-6)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(expected(WEIGHTS), wanted, rtol=1e-4, atol=1e-6)


def test_zero_weights_stay_zero_and_one_task_alone_has_all() -> None:
    unit = WeightUnit("examples", {"a": [1], "b": [10], "c": [100]}, 4)
    assert unit.converted({"a": 0.0, "b": 0.0, "c": 1.0}) == {"a": 0, "b": 0, "c": 1}
    found = unit.converted({"a": 0.5, "b": 0.0, "c": 0.5})
    assert found["b"] == 0
    assert found["a"] == pytest.approx(0.5 ** (1 / 4), abs=0.02)  # half of the batches are a alone


def test_examples_of_very_different_lengths() -> None:
    unit = WeightUnit("examples", {"a": [1] * 500, "b": [8000] * 500}, 64)
    found = unit.converted({"a": 0.5, "b": 0.5})
    assert found["a"] == pytest.approx(0.5 ** (1 / 64), abs=1e-3)
    assert sum(found.values()) == pytest.approx(1)


def test_units_that_cannot_be_converted() -> None:
    with pytest.raises(ValueError, match="unit 'rows' is not known; expected one of losses"):
        WeightUnit("rows")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="belong to kind='examples'"):
        WeightUnit("tokens", {"a": [1]})
    with pytest.raises(ValueError, match="task 'a': no example has a label token"):
        WeightUnit("examples", {"a": [0, 0]})
    with pytest.raises(ValueError, match="not of task 'b'"):
        WeightUnit("examples", {"a": [1]}).converted({"a": 0.5, "b": 0.5})
