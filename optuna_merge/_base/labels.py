"""Labels: which of them don't count, and how to draw them from a model's own predictions."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

IGNORED = -100
"""The label of a position that doesn't count, such as padding or a prompt."""


def categorical_labels(outputs: Tensor, generator: Generator | None = None) -> Tensor:
    """Draw class labels from logits of shape (..., classes): the model of cross-entropy.

    They are drawn where the generator is, so that one on the CPU draws the same for all devices.
    """
    probabilities = outputs.detach().float().softmax(-1).flatten(0, -2)
    drawn = torch.multinomial(probabilities.to(_place(outputs, generator)), 1, generator=generator)
    return drawn.view(outputs.shape[:-1]).to(outputs.device)


def gaussian_labels(outputs: Tensor, generator: Generator | None = None) -> Tensor:
    """Draw targets from N(outputs, 1): the model of the loss 1/2 (output - target)^2.

    The noise is drawn where the generator is, as in `categorical_labels`.
    """
    place = _place(outputs, generator)
    noise = torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype, device=place)
    return outputs.detach() + noise.to(outputs.device)


def keep_ignored(drawn: Tensor, labels: Tensor) -> Tensor:
    """`drawn`, but `IGNORED` wherever the data's `labels` are: nothing is to be learnt there."""
    if drawn.is_floating_point() or drawn.shape != labels.shape:
        return drawn
    return torch.where(labels == IGNORED, labels, drawn)


def _place(outputs: Tensor, generator: Generator | None) -> torch.device:
    return outputs.device if generator is None else generator.device
