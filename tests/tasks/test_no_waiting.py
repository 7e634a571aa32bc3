"""Nothing in an evaluation's loop reads a value, which on a GPU would wait for it.

On the meta device there are no values: reading one is an error.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from optuna_merge.tasks import (
    Loss,
    Metric,
    Task,
    accuracy,
    bleu,
    cross_entropy,
    evaluate,
    macro_f1,
    matthews,
    mean_squared_error,
    negative_squared_error,
    pearson,
    perplexity,
    squared_error,
    text_metric,
    token_accuracy,
    token_cross_entropy,
)

CLASSES, NUMBERS, TOKENS = (4, 3), (4, 1), (4, 6, 9)
TEXTS = text_metric("bleu", bleu, lambda rows: [""] * len(rows), length=3)

CASES: list[tuple[Loss, Metric, tuple[int, ...]]] = [
    *((cross_entropy, metric, CLASSES) for metric in (accuracy, macro_f1, matthews)),
    *(
        (mean_squared_error, metric, NUMBERS)
        for metric in (squared_error, negative_squared_error, pearson)
    ),
    *((token_cross_entropy, metric, TOKENS) for metric in (token_accuracy, perplexity, TEXTS)),
]


def task(loss: Loss, metric: Metric, shape: tuple[int, ...]) -> Task:
    labels = torch.zeros(shape) if loss is mean_squared_error else torch.arange(4) % 2
    if loss is token_cross_entropy:
        labels = labels[:, None].expand(4, 6)
    columns = {"labels": labels}
    return Task("any", columns, columns, shape[-1], loss=loss, metrics=(metric,))


@pytest.mark.parametrize(
    "loss, metric, shape", CASES, ids=[f"{loss.name}-{metric.name}" for loss, metric, _ in CASES]
)
def test_values_are_read_only_behind_the_last_batch(
    loss: Loss, metric: Metric, shape: tuple[int, ...]
) -> None:
    seen = 0

    def predict(batch: dict[str, Tensor]) -> Tensor:
        nonlocal seen
        seen += 1
        return torch.zeros(shape, device="meta")

    def generate(batch: dict[str, Tensor]) -> Tensor:
        return torch.zeros(4, 5, dtype=torch.long, device="meta")

    examined = task(loss, metric, shape)
    batch: dict[str, Any] = {"labels": examined.data("train")[[0, 1, 2, 3]]["labels"].to("meta")}
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        evaluate(predict, examined, [batch] * 3, generate=generate)
    assert seen == 3


def test_a_metric_that_reads_values_is_found_out() -> None:
    waiting = Metric("waiting", accuracy.function, condense=lambda o, y: (o[: int(y.max())], y))
    with pytest.raises(RuntimeError, match="meta"):
        evaluate(
            lambda batch: torch.zeros(CLASSES, device="meta"),
            task(cross_entropy, waiting, CLASSES),
            [{"labels": torch.zeros(4, dtype=torch.long, device="meta")}],
        )
