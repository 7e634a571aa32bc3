"""The data of the fashion study: three groups of garments, which compete for one head.

Fashion-MNIST has 60,000 and 10,000 images of garments in ten classes, 28 x 28 pixels of 0 to 255
(Xiao, Rasul and Vollgraf, arXiv 1708.07747). It comes from Debian's package of it, is
fetched into a cache folder (studies/fetch.py) and read there. A task names the garment of

tops     t-shirts, pullovers, coats and shirts (classes 0, 2, 4, 6), which look alike,
shoes    sandals, sneakers and ankle boots (5, 7, 9),
other    trousers, dresses and bags (1, 3, 8).

All share one head of ten classes, and each has images of its own classes only. A model that is
finetuned on one group calls everything by that group's names, so that no weighting serves all
three fully; and tops are much harder than the other two.

Test data come from the set's own 10,000; validation and training data from the 60,000. A part of
4,000 of these, of all classes, is held back for pretraining the body, under noise of half the
range of the pixels' values: it teaches shapes and leaves the tasks room to learn.
"""

from __future__ import annotations

import gzip
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch import Tensor

from studies.fetch import Archive, fetch, read_member
from studies.idx import Images, Split, order_of, read_images, split_of, under_noise

FASHION = Archive(
    name="dataset-fashion-mnist",
    version="0.0~git20200523.55506a9-1",
    filename="dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
    sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    kind="deb",
)
CLASSES = {"tops": (0, 2, 4, 6), "shoes": (5, 7, 9), "other": (1, 3, 8)}

_PRETRAINING = 4000
_SIZES = {"train": 2000, "validation": 600}  # of each task
_TEST = 1000
_NOISE = 0.5


def load_tasks(cache: Path, seed: int = 0) -> dict[str, dict[str, Split]]:
    """Return {"tops", "shoes", "other"} -> {"train", "validation", "test"} -> tensors.

    `pixel_values` is N x 1 x 28 x 28, float32 from 0 to 1; `labels` is N, int64 from 0 to 9. N is
    2,000, 600 and 1,000 in every task. `seed` chooses which images are in which split.

    Raises:
        FetchError, CorruptFileError: see `fetch`.
    """
    return split_tasks(all_images(cache, "train"), all_images(cache, "t10k"), seed)


def pretraining_data(cache: Path, seed: int = 0) -> Split:
    """Return 4,000 images that no task has, of all classes under Gaussian noise, and their labels.

    Shapes and types are those of `load_tasks`; the noise has a standard deviation of 0.5, so
    `pixel_values` leave the range from 0 to 1. The same `seed` must be given to both functions.
    """
    return split_pretraining(all_images(cache, "train"), seed)


def split_tasks(train: Images, test: Images, seed: int) -> dict[str, dict[str, Split]]:
    """The tasks' splits; `train` holds training, validation and pretraining data."""
    tasks: dict[str, dict[str, Split]] = {}
    held_in, held_out = order_of(train, seed)[_PRETRAINING:], order_of(test, seed)
    ends = [*accumulate([0, *_SIZES.values()])]
    for task, classes in CLASSES.items():
        rows, test_rows = _of(classes, train, held_in), _of(classes, test, held_out)
        tasks[task] = {
            name: split_of(train, rows[start:end])
            for name, (start, end) in zip(_SIZES, pairwise(ends))
        } | {"test": split_of(test, test_rows[:_TEST])}
    return tasks


def split_pretraining(train: Images, seed: int) -> Split:
    """The part of `train` that `split_tasks` leaves, under noise."""
    return under_noise(split_of(train, order_of(train, seed)[:_PRETRAINING]), _NOISE, seed)


def _of(classes: tuple[int, ...], images: Images, rows: Tensor) -> Tensor:
    return rows[torch.isin(images[1][rows], torch.tensor(classes))]


def all_images(cache: Path, part: str) -> Images:
    """The set's own part "train" or "t10k", in its order."""
    archive = fetch(FASHION, cache)

    def member(kind: str) -> bytes:
        name = f"usr/share/datasets/fashion-mnist/{part}-{kind}-ubyte.gz"
        return gzip.decompress(read_member(archive, "data.tar.xz", name))

    return read_images(member("images-idx3"), member("labels-idx1"))
