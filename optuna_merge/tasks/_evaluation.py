"""Loss and metrics of a model on one task's data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor

from optuna_merge.exceptions import NotFiniteError
from optuna_merge.tasks._data import LABELS, Batch, TensorData, batches_in_order, to_device
from optuna_merge.tasks._losses import Loss
from optuna_merge.tasks._metrics import Measurement, Metric, mean_measurement
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
    """See that every task's metric is a number that one can go on with.

    Args:
        evaluations: By task.
        what: What was evaluated, for the error.

    Raises:
        NotFiniteError: a task's metric is NaN or infinite; its name and the task's are told.
    """
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

    Batches of data that are held in memory are put together and moved to the device once, when
    they are first used; data that are decoded when read are read again in every pass.

    Args:
        task: The task.
        split: "train", "validation" or "test".
        batch_size: Examples a forward pass.
        device: Where batches are put.
        limit: Only so many examples, the first ones; default all.
        ends: Shares of the examples, ascending to 1, at which parts end. The examples fall into
            the parts at random, in all processes alike, so that each part is a sample of the
            data. Default: one part, in which all are ordered by length.
    """

    def __init__(
        self,
        task: Task,
        split: str = "validation",
        *,
        batch_size: int = 64,
        device: torch.device | str = "cpu",
        limit: int | None = None,
        ends: Sequence[float] = (1.0,),
    ) -> None:
        self._data = task.data(split)
        self._device = device
        size = len(self._data)
        size = size if limit is None else min(limit, size)
        if len(ends) == 1:
            self._rows = [batches_in_order(self._data, batch_size, range(size))]
        else:
            order = torch.randperm(size, generator=torch.Generator().manual_seed(0)).tolist()
            cuts = [0, *(round(size * end) for end in ends)]
            parts = [order[start:stop] for start, stop in pairwise(cuts)]
            self._rows = [
                batches_in_order(self._data, _even(len(part), batch_size), part) for part in parts
            ]
        self._kept: list[list[Batch]] | None = None

    def __iter__(self) -> Iterator[Batch]:
        return chain.from_iterable(map(self.part, range(len(self._rows))))

    def part(self, index: int) -> Iterator[Batch]:
        """The batches of one part."""
        if self._kept is None and isinstance(self._data, TensorData):
            self._kept = [list(self._read(rows)) for rows in self._rows]
        return self._read(self._rows[index]) if self._kept is None else iter(self._kept[index])

    def _read(self, batches: Iterable[list[int]]) -> Iterator[Batch]:
        return (to_device(self._data[rows], self._device) for rows in batches)


def _even(count: int, largest: int) -> int:
    """Size of the fewest batches of `largest` or less that are of about one size."""
    return math.ceil(count / max(1, math.ceil(count / largest))) or 1


class Tally:
    """What an evaluation has seen so far: losses, and what the metrics need of every example.

    All of it stays on the device until it is asked for: nothing waits inside `add`.

    Args:
        task: Gives loss and metrics.
        generate: Batch to generated token ids (batch, tokens), without the prompt; needed for
            metrics of generated texts, and called only for them.
        measure: A metric's value, for metrics of the whole model; needed and called only for
            them.

    Raises:
        ValueError: a metric wants generated texts, and `generate` is missing, or the whole model,
            and `measure` is.
    """

    def __init__(
        self,
        task: Task,
        generate: Callable[[Batch], Tensor] | None = None,
        measure: Callable[[Metric], Measurement] | None = None,
    ) -> None:
        self._task = task
        self._measure = measure
        if measure is None and any(metric.of_model is not None for metric in task.metrics):
            raise ValueError(
                f"task {task.name!r} has metrics of the whole model; give evaluate() a measure="
            )
        self._generate = generate if any(metric.generated for metric in task.metrics) else None
        if self._generate is None and any(metric.generated for metric in task.metrics):
            raise ValueError(
                f"task {task.name!r} has metrics of generated texts; give evaluate() a generate="
            )
        self._losses: list[Tensor] = []
        self._condensed: dict[str, list[tuple[Tensor, Tensor]]] = {
            metric.name: [] for metric in task.metrics if metric.of_model is None
        }

    def add(self, predict: Callable[[Batch], Tensor], batches: Iterable[Batch]) -> None:
        """Run `predict`, in evaluation mode, over the batches, without gradients."""
        loss = self._task.loss
        assert isinstance(loss, Loss)
        with torch.inference_mode():
            for batch in batches:
                labels = batch[LABELS]
                predicted = predict(batch)
                self._losses.append(loss(predicted.float(), labels))
                written = None if self._generate is None else self._generate(batch)
                for metric in self._task.metrics:
                    if metric.of_model is not None:
                        continue
                    outputs = written if metric.generated and written is not None else predicted
                    self._condensed[metric.name].append(metric.condense(outputs, labels))

    @property
    def count(self) -> int:
        """Number of examples so far."""
        return sum(map(len, self._losses))

    def evaluation(self) -> Evaluation:
        """Loss and metrics of the examples so far; at least one."""
        metrics = {
            metric.name: metric.function(*self._transferred(metric))
            if metric.of_model is None or self._measure is None
            else self._measure(metric)
            for metric in self._task.metrics
        }
        losses = torch.cat(self._losses).cpu()
        return Evaluation(mean_measurement(losses), metrics, len(losses))

    def values(self) -> Tensor:
        """The task's metric example by example, (n,), in the order in which they were added.

        Raises:
            ValueError: the metric is no mean over examples.
        """
        metric = self._task.metric
        if metric.per_example is None:
            raise ValueError(f"metric {metric.name!r} is no mean over examples")
        return metric.per_example(*self._transferred(metric)).double()

    def _transferred(self, metric: Metric) -> tuple[Tensor, Tensor]:
        outputs, labels = (torch.cat(part).cpu() for part in zip(*self._condensed[metric.name]))
        return outputs, labels


def evaluate(
    predict: Callable[[Batch], Tensor],
    task: Task,
    batches: Iterable[Batch],
    *,
    generate: Callable[[Batch], Tensor] | None = None,
    measure: Callable[[Metric], Measurement] | None = None,
) -> Evaluation:
    """Evaluate `predict` in one pass without gradients.

    Args:
        predict: Batch to outputs (batch, ...); the model must be in evaluation mode.
        task: Gives loss and metrics.
        batches: The data, such as `EvaluationBatches`.
        generate: See `Tally`.
        measure: See `Tally`.

    Raises:
        ValueError: as `Tally`.
    """
    tally = Tally(task, generate, measure)
    tally.add(predict, batches)
    return tally.evaluation()
