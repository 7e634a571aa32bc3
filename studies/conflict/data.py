"""The data of the conflict study: the digits study's images, and two tasks that disagree on some.

plain     Images as they were written, and their digits.
swapped   The same images; 3 and 8 have each other's label, and so have 4 and 9.
rotated   Turned by 180 degrees.
mirrored  Left and right exchanged.

One head of ten classes serves all. On two fifths of the images `plain` and `swapped` can't both be
right, whatever their weights: not the own weight of either decides, but its share of both weights.
Splits and images are those of `studies/digits/data.py`.
"""

from __future__ import annotations

import torch

from studies.digits import data as digits
from studies.digits.data import Split

_SWAPPED = torch.tensor([0, 1, 2, 8, 9, 5, 6, 7, 3, 4])
"""By digit, its label in the task `swapped`."""


def load_tasks(seed: int = 0) -> dict[str, dict[str, Split]]:
    """Return {"plain", "swapped", ...} -> {"train", "validation", "test"} -> tensors.

    Args:
        seed: Chooses which images are in which split.
    """
    views = digits.load_tasks(seed)
    plain = views.pop("upright")
    swapped = {
        part: {**split, "labels": _SWAPPED[split["labels"]]} for part, split in plain.items()
    }
    return {"plain": plain, "swapped": swapped, **views}
