"""Losses: one value per example, and how to draw labels from the model's own predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from optuna_merge._base.labels import IGNORED, categorical_labels, gaussian_labels


@dataclass(frozen=True)
class Loss:
    """A loss with what the rest of the package needs to know about it.

    Attributes:
        name: Stands in the study's definition.
        function: `(outputs, labels) -> losses`, one value per example: shape (batch,). Task
            weights weigh the MEAN of these values.
        sample_labels: `(outputs, generator) -> labels` drawn from the predictive distribution of
            which the loss is the negative logarithm; squared gradients with such labels estimate
            the Fisher information. None: the data's own labels are used (the empirical Fisher).
        classification: Each example has one label, an integer class below the head's number of
            outputs.
        for_curvature: The function whose squared per-example gradients, with sampled labels, have
            the curvature of `function` as their mean; default: `function`, which is right where
            that is a negative log-likelihood. See `token_cross_entropy` for one that is not.
    """

    name: str
    function: Callable[[Tensor, Tensor], Tensor]
    sample_labels: Callable[[Tensor, torch.Generator | None], Tensor] | None = None
    classification: bool = False
    for_curvature: Callable[[Tensor, Tensor], Tensor] | None = None

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return self.function(outputs, labels)


def sum_over_tokens(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Per example the sum of its labelled tokens' cross-entropies, and how many those are."""
    losses = functional.cross_entropy(
        outputs.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    rows = (len(labels), -1)
    return losses.reshape(rows).sum(1), (labels != IGNORED).reshape(rows).sum(1)


def _cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, labels, reduction="none")


def _squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """Half the squared error: minus the log-density of a unit-variance Gaussian."""
    return 0.5 * (outputs - labels.reshape(outputs.shape)).square().flatten(1).sum(1)


def _token_cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    losses, counts = sum_over_tokens(outputs, labels)
    return losses / counts.clamp(min=1)


def _token_cross_entropy_for_curvature(outputs: Tensor, labels: Tensor) -> Tensor:
    # Of n tokens with independent sampled labels, E (grad of the mean)^2 is 1/n^2 times the sum
    # of the tokens' Fisher informations; the mean's curvature is 1/n times it.
    losses, counts = sum_over_tokens(outputs, labels)
    return losses / counts.clamp(min=1).sqrt()


cross_entropy = Loss("cross_entropy", _cross_entropy, categorical_labels, classification=True)
"""Softmax cross-entropy over integer classes; outputs (batch, classes), labels (batch,)."""

mean_squared_error = Loss("mean_squared_error", _squared_error, gaussian_labels)
"""Half the squared error summed over outputs; outputs and labels (batch, outputs)."""

token_cross_entropy = Loss(
    "token_cross_entropy",
    _token_cross_entropy,
    categorical_labels,
    for_curvature=_token_cross_entropy_for_curvature,
)
"""Mean cross-entropy over an example's labelled tokens, for language models and tagging.

Outputs (batch, tokens, classes), labels (batch, tokens): label t is what output t predicts, and
-100 stands where nothing is to be predicted. For a causal model, the data's labels are therefore
the input tokens shifted to the left by one; nothing is shifted here. Every example weighs the
same, however long; one without a labelled token has the loss 0.
"""
