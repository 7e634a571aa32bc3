"""Loss and metrics of a model on one task's data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optuna_merge.tasks._data import LABELS, Batch, batches_in_order, to_device
from optuna_merge.tasks._losses import Loss
from optuna_merge.tasks._metrics import Measurement, mean_measurement
from optuna_merge.tasks._task import Task


@dataclass(frozen=True)
class Evaluation:
    """What a model is worth on one task's data.

    Attributes:
        loss: Mean of the task's per-example loss.
        metrics: By metric name; the first is the task's metric.
        num_examples: How many examples were evaluated.
    """

    loss: Measurement
    metrics: dict[str, Measurement]
    num_examples: int

    @property
    def metric(self) -> Measurement:
        """The task's metric."""
        return next(iter(self.metrics.values()))

    def to_json(self) -> dict[str, Any]:
        """As JSON values, for checkpoints and reports."""
        return {
            "loss": [self.loss.value, self.loss.standard_error],
            "metrics": {
                name: [measured.value, measured.standard_error]
                for name, measured in self.metrics.items()
            },
            "num_examples": self.num_examples,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Evaluation:
        """The inverse of `to_json`."""
        metrics = {name: Measurement(*pair) for name, pair in value["metrics"].items()}
        return cls(Measurement(*value["loss"]), metrics, value["num_examples"])


def evaluate(
    predict: Callable[[Batch], Tensor],
    task: Task,
    *,
    split: str = "validation",
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    indices: Sequence[int] | None = None,
) -> Evaluation:
    """Evaluate `predict` on a task's data, in one pass without gradients.

    Args:
        predict: Batch to outputs (batch, ...); the model must be in evaluation mode.
        task: Gives data, loss and metrics.
        split: "train", "validation" or "test".
        batch_size: Examples a forward pass.
        device: Where batches are put.
        indices: Only these examples; default all.
    """
    data = task.data(split)
    assert isinstance(task.loss, Loss)
    outputs, labels, losses = [], [], []
    with torch.inference_mode():
        for rows in batches_in_order(data, batch_size, indices):
            batch = to_device(data[rows], device)
            predicted = predict(batch)
            losses.append(task.loss(predicted, batch[LABELS]).float())
            outputs.append(predicted)
            labels.append(batch[LABELS])
        # One transfer at the end: nothing waits for the device inside the loop.
        all_outputs, all_labels = torch.cat(outputs).float().cpu(), torch.cat(labels).cpu()
        metrics = {metric.name: metric(all_outputs, all_labels) for metric in task.metrics}
        return Evaluation(mean_measurement(torch.cat(losses).cpu()), metrics, len(all_labels))
