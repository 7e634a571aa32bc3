from __future__ import annotations

import json
import math

import pytest
import torch
from helpers import toy_task
from torch import Tensor

from optuna_merge.tasks import (
    Evaluation,
    EvaluationBatches,
    Task,
    accuracy,
    bleu,
    cross_entropy,
    evaluate,
    mean_squared_error,
    negative_squared_error,
    perplexity,
    text_metric,
    token_accuracy,
    token_cross_entropy,
)
from optuna_merge.tasks._metrics._standard_errors import mean_measurement


def test_accuracy_and_its_standard_error() -> None:
    outputs = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0], [0.0, 1.0]])
    measured = accuracy(outputs, torch.tensor([0, 1, 1, 1]))
    assert measured.value == 0.75
    # Sample variance of 1, 1, 0, 1 is 1/4; over four examples.
    assert measured.standard_error == pytest.approx(math.sqrt(0.25 / 4))


def test_one_example_has_no_standard_error() -> None:
    measured = mean_measurement(torch.tensor([2.0]))
    assert measured.value == 2.0
    assert math.isnan(measured.standard_error)


def test_squared_errors_take_labels_of_either_shape() -> None:
    outputs = torch.tensor([[1.0], [4.0]])
    for labels in (torch.tensor([2.0, 2.0]), torch.tensor([[2.0], [2.0]])):
        assert mean_squared_error(outputs, labels).tolist() == [0.5, 2.0]
        assert negative_squared_error(outputs, labels).value == -2.5
    wide = torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2)
    assert mean_squared_error(*wide).tolist() == [5.0]
    assert negative_squared_error(*wide).value == -5.0


def test_losses_are_per_example_and_labels_are_drawn_from_the_prediction() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]]).expand(4000, 2)
    labels = torch.zeros(4000).long()
    assert cross_entropy(logits, labels).tolist() == pytest.approx([math.log(4.0)] * 4000)
    assert cross_entropy.sample_labels is not None
    assert mean_squared_error.sample_labels is not None
    generator = torch.Generator().manual_seed(0)
    drawn = cross_entropy.sample_labels(logits, generator)
    assert drawn.shape == (4000,)
    assert drawn.float().mean() == pytest.approx(0.75, abs=0.03)
    targets = mean_squared_error.sample_labels(torch.full((4000, 1), 5.0), generator)
    assert targets.mean() == pytest.approx(5.0, abs=0.06)
    assert targets.std() == pytest.approx(1.0, abs=0.05)


def linear(batch: dict[str, Tensor]) -> Tensor:
    return batch["x"][:, :2]


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_an_evaluation_is_the_mean_over_examples_whatever_the_batches(batch_size: int) -> None:
    task = toy_task("red")
    rows = task.data("validation")[list(range(30))]
    found = evaluate(linear, task, EvaluationBatches(task, batch_size=batch_size))
    losses = cross_entropy(linear(rows), rows["labels"])
    assert found.num_examples == 30
    assert found.loss.value == pytest.approx(losses.double().mean().item(), rel=1e-6)
    assert found.loss.standard_error == pytest.approx(losses.std().item() / math.sqrt(30))
    assert found.metric == accuracy(linear(rows), rows["labels"])


def test_split_and_rows_can_be_chosen() -> None:
    task = toy_task("red")
    rows = task.data("train")[[0, 1, 2]]
    found = evaluate(linear, task, EvaluationBatches(task, "train", limit=3))
    assert found.num_examples == 3
    assert found.metric == accuracy(linear(rows), rows["labels"])


def test_an_evaluation_survives_json() -> None:
    task = toy_task("red")
    found = evaluate(linear, task, EvaluationBatches(task))
    assert Evaluation.from_json(json.loads(json.dumps(found.to_json()))) == found
    alone = evaluate(linear, task, EvaluationBatches(task, limit=1))  # its standard errors are NaN
    again = Evaluation.from_json(json.loads(json.dumps(alone.to_json())))
    assert math.isnan(again.loss.standard_error)
    assert again.loss.value == alone.loss.value


def test_token_outputs_of_different_lengths_are_evaluated_together() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([5, 2, 4, 3])
    mask = (torch.arange(5) < lengths[:, None]).long()
    labels = torch.randint(0, 7, (4, 5), generator=generator).masked_fill(mask == 0, -100)
    table = torch.randn(4, 5, 7, generator=generator)
    columns = {"attention_mask": mask, "labels": labels, "logits": table}
    task = Task(
        "words",
        columns,
        columns,
        7,
        loss=token_cross_entropy,
        metrics=(token_accuracy, perplexity),
    )
    found = evaluate(lambda batch: batch["logits"], task, EvaluationBatches(task, batch_size=2))
    kept = labels != -100
    losses = torch.nn.functional.cross_entropy(table[kept], labels[kept], reduction="none")
    hits = (table[kept].argmax(-1) == labels[kept]).double()
    assert found.num_examples == 4
    assert found.metrics["token_accuracy"].value == pytest.approx(hits.mean().item())
    assert found.metrics["perplexity"].value == pytest.approx(losses.mean().exp().item(), rel=1e-5)


def _decode(rows: list[list[int]]) -> list[str]:
    return [" ".join(map(str, row)) for row in rows]


def test_generated_texts_need_a_generator() -> None:
    metric = text_metric("bleu", bleu, _decode, length=4)
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 3]])
    columns = {"x": torch.zeros(2, 6), "labels": ids}
    task = Task("speak", columns, columns, 10, loss=token_cross_entropy, metrics=(metric,))
    batches = EvaluationBatches(task)

    def predict(batch: dict[str, Tensor]) -> Tensor:
        return torch.zeros(len(batch["x"]), 4, 10)

    with pytest.raises(ValueError, match="'speak' has metrics of generated texts"):
        evaluate(predict, task, batches)
    found = evaluate(predict, task, batches, generate=lambda batch: batch["labels"])
    assert found.metric.value == pytest.approx(100.0)
