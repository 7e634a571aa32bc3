"""Images and labels in the IDX format, in which MNIST and the sets made after it come."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Images = tuple[Tensor, Tensor]
"""Pixels, N x 1 x 28 x 28, uint8, and classes, N, int64."""
Split = dict[str, Tensor]
"""Columns of a task's data: `pixel_values`, float32 from 0 to 1, and `labels`."""


def read_images(images: bytes, labels: bytes) -> Images:
    """What an images file (header of 16 bytes) and a labels file (of 8) hold."""

    def numbers(content: bytes, header: int) -> Tensor:
        return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).copy())

    classes = numbers(labels, 8).long()
    return numbers(images, 16).reshape(len(classes), 1, 28, 28), classes


def order_of(images: Images, seed: int) -> Tensor:
    """Their rows in a random order, the same for the same seed."""
    return torch.randperm(len(images[1]), generator=torch.Generator().manual_seed(seed))


def split_of(images: Images, rows: Tensor) -> Split:
    """The images of these rows as a task's data."""
    pixels, labels = images
    return {"pixel_values": pixels[rows].float() / 255, "labels": labels[rows]}


def under_noise(split: Split, deviation: float, seed: int) -> Split:
    """The same under Gaussian noise, so that `pixel_values` leave their range."""
    pixels = split["pixel_values"]
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
    return split | {"pixel_values": pixels + deviation * noise}
