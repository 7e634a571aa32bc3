"""Loss and metrics of a model on one task's data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optuna_merge.exceptions import NotFiniteError
from optuna_merge.tasks._data import LABELS, Batch, TensorData, batches_in_order, to_device
from optuna_merge.tasks._losses import Loss
from optuna_merge.tasks._metrics._metric import Measurement, Metric
from optuna_merge.tasks._metrics._standard_errors import mean_measurement
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


def check_finite(evaluations: Mapping[str, Evaluation], what: str) -> None:
    """See that every task's metric is a number that one can go on with."""
    for task, evaluation in evaluations.items():
        if not math.isfinite(evaluation.metric.value):
            raise NotFiniteError(
                f"task {task!r}: the metric {next(iter(evaluation.metrics))!r} of {what} is "
                f"{evaluation.metric.value:g} on validation data, where the loss is "
                f"{evaluation.loss.value:g}; expected a finite number. If the loss isn't finite "
                f"either, a lower learning rate may help; else take a metric that has a value for "
                f"all outputs"
            )


class EvaluationBatches:
    """A task's data in batches, in one fixed order, to be evaluated again and again.

    Batches of data that are held in memory are put together and moved to the device once; data
    that are decoded when read are read again in every pass.

    Args:
        task: The task.
        split: "train", "validation" or "test".
        batch_size: Examples a forward pass.
        device: Where batches are put.
        limit: Only so many examples, the first ones; default all.
    """

    def __init__(
        self,
        task: Task,
        split: str = "validation",
        *,
        batch_size: int = 64,
        device: torch.device | str = "cpu",
        limit: int | None = None,
    ) -> None:
        self._data = task.data(split)
        self._device = device
        size = len(self._data)
        size = size if limit is None else min(limit, size)
        self._rows = batches_in_order(self._data, batch_size, range(size))
        self._kept: list[Batch] | None = None

    def __iter__(self) -> Iterator[Batch]:
        if self._kept is None and isinstance(self._data, TensorData):
            self._kept = list(self._read())
        return self._read() if self._kept is None else iter(self._kept)

    def _read(self) -> Iterator[Batch]:
        return (to_device(self._data[rows], self._device) for rows in self._rows)


def evaluate(
    predict: Callable[[Batch], Tensor],
    task: Task,
    batches: Iterable[Batch],
    *,
    generate: Callable[[Batch], Tensor] | None = None,
    measure: Callable[[Metric], Measurement] | None = None,
) -> Evaluation:
    """Evaluate `predict` in one pass without gradients; nothing waits on the device on the way.

    Args:
        predict: Batch to outputs (batch, ...); the model must be in evaluation mode.
        task: Gives loss and metrics.
        batches: The data, such as `EvaluationBatches`; at least one example.
        generate: Batch to generated token ids (batch, tokens), without the prompt; needed for
            metrics of generated texts, and called only for them.
        measure: A metric's value; needed and called only for metrics of the whole model.

    Raises:
        ValueError: a metric wants what is missing of these.
    """
    if measure is None and any(metric.of_model is not None for metric in task.metrics):
        raise ValueError(
            f"task {task.name!r} has metrics of the whole model; give evaluate() a measure="
        )
    writes = any(metric.generated for metric in task.metrics)
    if writes and generate is None:
        raise ValueError(
            f"task {task.name!r} has metrics of generated texts; give evaluate() a generate="
        )
    loss = task.loss
    assert isinstance(loss, Loss)
    losses: list[Tensor] = []
    condensed: dict[str, list[tuple[Tensor, Tensor]]] = {
        metric.name: [] for metric in task.metrics if metric.of_model is None
    }
    with torch.inference_mode():
        for batch in batches:
            labels = batch[LABELS]
            predicted = predict(batch)
            losses.append(loss(predicted.float(), labels))
            written = generate(batch) if writes and generate is not None else predicted
            for metric in task.metrics:
                if metric.of_model is None:
                    outputs = written if metric.generated else predicted
                    condensed[metric.name].append(metric.condense(outputs, labels))

    def measured(metric: Metric) -> Measurement:
        if metric.of_model is not None and measure is not None:
            return measure(metric)
        outputs, labels = (torch.cat(part).cpu() for part in zip(*condensed[metric.name]))
        return metric.function(outputs, labels)

    metrics = {metric.name: measured(metric) for metric in task.metrics}
    every = torch.cat(losses).cpu()
    return Evaluation(mean_measurement(every), metrics, len(every))
