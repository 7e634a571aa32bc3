"""Losses: one value per example, and how to draw labels from the model's own predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


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
        classification: Labels are integer classes below the head's number of outputs.
    """

    name: str
    function: Callable[[Tensor, Tensor], Tensor]
    sample_labels: Callable[[Tensor, torch.Generator | None], Tensor] | None = None
    classification: bool = False

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return self.function(outputs, labels)


def _cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, labels, reduction="none")


def _sample_categorical(outputs: Tensor, generator: torch.Generator | None) -> Tensor:
    probabilities = outputs.detach().float().softmax(-1)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)


def _squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """Half the squared error: minus the log-density of a unit-variance Gaussian."""
    return 0.5 * (outputs - labels.reshape(outputs.shape)).square().flatten(1).sum(1)


def _sample_gaussian(outputs: Tensor, generator: torch.Generator | None) -> Tensor:
    noise = torch.randn(outputs.shape, generator=generator, dtype=torch.float32)
    return outputs.detach() + noise.to(outputs)


cross_entropy = Loss("cross_entropy", _cross_entropy, _sample_categorical, classification=True)
"""Softmax cross-entropy over integer classes; outputs (batch, classes), labels (batch,)."""

mean_squared_error = Loss("mean_squared_error", _squared_error, _sample_gaussian)
"""Half the squared error summed over outputs; outputs and labels (batch, outputs)."""
