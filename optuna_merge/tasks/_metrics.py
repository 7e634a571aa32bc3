"""Metrics over a data set, each with the standard error that comes from the finite data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Measurement:
    """A value and its standard error over examples (NaN where it isn't known)."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class Metric:
    """A metric of a whole data set.

    Attributes:
        name: Stands in the study's definition and in tables.
        function: `(outputs, labels) -> Measurement` over all examples, on the CPU.
        greater_is_better: Decides the direction of the study.
    """

    name: str
    function: Callable[[Tensor, Tensor], Measurement]
    greater_is_better: bool = True

    def __call__(self, outputs: Tensor, labels: Tensor) -> Measurement:
        return self.function(outputs, labels)


def mean_measurement(values: Tensor) -> Measurement:
    """Mean of per-example values (shape (n,)) with its standard error s / sqrt(n)."""
    values = values.double()
    count = len(values)
    error = math.nan if count < 2 else float(values.std(unbiased=True)) / math.sqrt(count)
    return Measurement(float(values.mean()), error)


def _accuracy(outputs: Tensor, labels: Tensor) -> Measurement:
    return mean_measurement((outputs.argmax(-1) == labels).double())


def _negative_squared_error(outputs: Tensor, labels: Tensor) -> Measurement:
    errors = (outputs - labels.reshape(outputs.shape)).square().flatten(1).mean(1)
    return mean_measurement(-errors)


accuracy = Metric("accuracy", _accuracy)
"""Share of examples whose largest output is the label."""

negative_squared_error = Metric("negative_squared_error", _negative_squared_error)
"""Minus the mean squared error, so that greater is better."""
