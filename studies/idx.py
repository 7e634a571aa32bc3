"""Images and labels in the IDX format, in which MNIST and the sets made after it come."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Images = tuple[Tensor, Tensor]
"""Pixels, N x 1 x 28 x 28, uint8, and classes, N, int64."""


def read_images(images: bytes, labels: bytes) -> Images:
    """What an images file (header of 16 bytes) and a labels file (of 8) hold."""

    def numbers(content: bytes, header: int) -> Tensor:
        return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).copy())

    classes = numbers(labels, 8).long()
    return numbers(images, 16).reshape(len(classes), 1, 28, 28), classes
