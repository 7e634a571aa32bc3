"""Metrics of classifiers: outputs (batch, classes), one integer label an example."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optuna_merge.tasks._metrics._metric import Measurement, Metric
from optuna_merge.tasks._metrics._standard_errors import delta_measurement, mean_measurement


def _predicted(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if outputs.ndim != 2 or labels.shape != outputs.shape[:1]:
        raise ValueError(
            f"a metric of classes takes outputs (batch, classes) and labels (batch,), got "
            f"{tuple(outputs.shape)} and {tuple(labels.shape)}; for labels of tokens there is "
            f"token_accuracy"
        )
    return outputs.argmax(-1), labels


def _accuracy(predicted: Tensor, labels: Tensor) -> Measurement:
    return mean_measurement(predicted == labels)


def _macro_f1(predicted: Tensor, labels: Tensor) -> Measurement:
    hit = (predicted == labels).double()
    hits, predictions, occurrences = _shares(predicted, labels)
    sizes = predictions + occurrences
    classes = int((sizes > 0).sum())
    scores = 2 * hits / sizes.clamp(min=torch.finfo(sizes.dtype).tiny)
    influence = (
        2 * hit / sizes[labels] - (scores / sizes)[predicted] - (scores / sizes)[labels]
    ) / classes
    return delta_measurement(float(scores.sum()) / classes, influence)


def _matthews(predicted: Tensor, labels: Tensor) -> Measurement:
    hit = (predicted == labels).double()
    _, p, t = _shares(predicted, labels)
    if p.max() == 1 or t.max() == 1:
        return Measurement(0.0, math.nan)
    p_variance, t_variance = 1 - p @ p, 1 - t @ t
    scale = (p_variance * t_variance).sqrt()
    value = (hit.mean() - p @ t) / scale
    influence = (hit - t[predicted] - p[labels]) / scale + value * (
        p[predicted] / p_variance + t[labels] / t_variance
    )
    return delta_measurement(float(value), influence)


def _shares(predicted: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Share of all examples, by class: correctly predicted, predicted and labelled as it."""
    classes = int(torch.maximum(predicted.max(), labels.max())) + 1
    hits, predictions, occurrences = (
        torch.bincount(which, minlength=classes).double() / len(labels)
        for which in (labels[predicted == labels], predicted, labels)
    )
    return hits, predictions, occurrences


accuracy = Metric("accuracy", _accuracy, condense=_predicted)
"""Share of examples whose largest output is the label."""

macro_f1 = Metric("macro_f1", _macro_f1, condense=_predicted)
"""Mean of the classes' F1 scores, over the classes that are labelled or predicted at all.

With h_c, p_c and t_c the shares of examples that are correctly predicted, predicted and labelled
as class c, F_c = 2 h_c / (p_c + t_c); the delta method gives example i, of label y and prediction
z, the influence (2 [y = z] / (p_y + t_y) - F_y / (p_y + t_y) - F_z / (p_z + t_z)) / classes.
"""

matthews = Metric("matthews", _matthews, condense=_predicted)
"""Matthews correlation R_K of labels and predictions, of two or more classes.

R_K = (h - sum_c p_c t_c) / sqrt(P T), with h the accuracy, p_c and t_c the shares of class c among
predictions and labels, P = 1 - sum_c p_c^2 and T = 1 - sum_c t_c^2 (Gorodkin, Computational
Biology and Chemistry 28, 2004). The delta method gives example i, of label y and prediction z, the
influence ([y = z] - t_z - p_y) / sqrt(P T) + R_K (p_z / P + t_y / T), up to a constant. Where all
predictions or all labels are one class it is 0, as usual, of unknown standard error.
"""
