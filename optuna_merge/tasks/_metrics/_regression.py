"""Metrics of numbers: outputs and labels of as many numbers an example."""

from __future__ import annotations

import math

from torch import Tensor

from optuna_merge.tasks._metrics._metric import Measurement, Metric
from optuna_merge.tasks._metrics._standard_errors import delta_measurement, mean_measurement


def _squared_errors(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs - labels.reshape(outputs.shape)).square().flatten(1).mean(1)


def _squared_error(outputs: Tensor, labels: Tensor) -> Measurement:
    return mean_measurement(_squared_errors(outputs, labels))


def _negative_squared_error(outputs: Tensor, labels: Tensor) -> Measurement:
    return mean_measurement(-_squared_errors(outputs, labels))


def _pearson(outputs: Tensor, labels: Tensor) -> Measurement:
    if outputs.numel() != len(outputs) or labels.numel() != len(outputs):
        raise ValueError(
            f"pearson takes one output and one label an example, got shapes "
            f"{tuple(outputs.shape)} and {tuple(labels.shape)}"
        )
    x, y = outputs.flatten().double(), labels.flatten().double()
    if bool((x == x[0]).all()) or bool((y == y[0]).all()):
        return Measurement(0.0, math.nan)
    x, y = ((z - z.mean()) / z.std(unbiased=False) for z in (x, y))
    value = (x * y).mean()
    return delta_measurement(float(value), x * y - value / 2 * (x.square() + y.square()))


squared_error = Metric("squared_error", _squared_error, greater_is_better=False)
"""The mean squared error, over examples and outputs; smaller is better."""

negative_squared_error = Metric("negative_squared_error", _negative_squared_error)
"""Minus the mean squared error, so that greater is better."""

pearson = Metric("pearson", _pearson)
"""Pearson's correlation r of outputs and labels, one number an example.

With x and y standardised, the delta method gives example i the influence
x y - r / 2 (x^2 + y^2) (Devlin, Gnanadesikan and Kettenring, Biometrika 62, 1975). Where all
outputs or all labels are equal it is 0, of unknown standard error: such outputs tell nothing.
"""
