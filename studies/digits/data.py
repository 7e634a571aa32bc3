"""The data of the digits study: three orientations of one digit set, which compete for one head.

scikit-learn ships 1,797 images of handwritten digits, 8 x 8 pixels of 0 to 16 (Alpaydin and
Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998). Each task names the digit on an
image that is

upright      as it was written,
rotated      turned by 180 degrees,
mirrored     left and right exchanged.

All share one head of ten classes, so they conflict: a rotated 6 is what an upright 9 looks like,
a mirrored 2 is much like a 5, and nothing in an image tells its task. No weighting serves all
three fully, and a model that saw one task alone reads most images of the others wrongly.

The images are split once, for all tasks: one that is validated or tested in any orientation is
trained on in none. A part of 500 is held back for pretraining the body, upright and under noise of
half the range of the pixels' values: it teaches strokes and the ten shapes, leaves the tasks room
to learn, and favours the upright one, so that uniform weights are not the best by symmetry.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise

import torch
from sklearn.datasets import load_digits
from torch import Tensor

_PRETRAINING, _TRAIN, _VALIDATION = 500, 600, 300  # of 1,797; the rest is test data
_NOISE = 0.5

Split = dict[str, Tensor]


def load_tasks(seed: int = 0) -> dict[str, dict[str, Split]]:
    """Return {"upright", "rotated", "mirrored"} -> {"train", "validation", "test"} -> tensors.

    `pixel_values` is N x 1 x 8 x 8, float32 from 0 to 1; `labels` is N, int64 from 0 to 9. N is
    600, 300 and 397 in every task. `seed` chooses which images are in which split.
    """
    _, *parts = _parts(seed)
    views: dict[str, Callable[[Tensor], Tensor]] = {
        "upright": lambda images: images,
        "rotated": lambda images: torch.flip(images, (2, 3)),
        "mirrored": lambda images: torch.flip(images, (3,)),
    }
    return {
        task: {
            name: {"pixel_values": view(images).contiguous(), "labels": labels.clone()}
            for name, (images, labels) in zip(("train", "validation", "test"), parts)
        }
        for task, view in views.items()
    }


def pretraining_data(seed: int = 0) -> Split:
    """Return 500 upright images that no task has, under Gaussian noise, and their digits.

    Shapes and types are those of `load_tasks`; the noise has a standard deviation of 0.5, so
    `pixel_values` leave the range from 0 to 1. The same `seed` must be given to both functions.
    """
    images, labels = _parts(seed)[0]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(images.shape, generator=generator)
    return {"pixel_values": images + _NOISE * noise, "labels": labels}


def _parts(seed: int) -> list[tuple[Tensor, Tensor]]:
    """Images and labels for pretraining, training, validation and test, in this order."""
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(digits.target, dtype=torch.int64)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    ends = [*accumulate([0, _PRETRAINING, _TRAIN, _VALIDATION]), len(images)]
    parts = [order[start:end] for start, end in pairwise(ends)]
    return [(images[part], labels[part]) for part in parts]
