"""The MNIST study's splits, on made-up images; and on the real ones where they can be had."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from studies.fetch import FetchError, default_cache
from studies.idx import Images, read_images
from studies.mnist.data import load_tasks, pretraining_data, split_pretraining, split_tasks

_SIZES = {"train": 2000, "validation": 600, "test": 1000}


def _made_up(size: int, first: int) -> Images:
    """Images that are all different: their numbers from `first` on, written in two pixels."""
    numbers = torch.arange(first, first + size)
    pixels = torch.zeros(size, 1, 28, 28, dtype=torch.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 1, 0] = numbers // 256, numbers % 256
    return pixels, numbers % 10


DIGITS = (_made_up(9000, 0), _made_up(3000, 10000))
GARMENTS = (_made_up(9000, 20000), _made_up(3000, 30000))


def _numbers(pixel_values: Tensor) -> list[int]:
    high, low = (pixel_values[:, 0, :2, 0] * 255).round().long().T
    return (high * 256 + low).tolist()  # type: ignore[no-any-return]


def test_shapes_types_range_and_classes() -> None:
    tasks = split_tasks(DIGITS, GARMENTS, 0)
    assert list(tasks) == ["digits", "garments", "large"]
    for name, parts in tasks.items():
        assert {part: len(split["labels"]) for part, split in parts.items()} == _SIZES
        for split in parts.values():
            assert split["pixel_values"].shape[1:] == (1, 28, 28)
            assert split["pixel_values"].dtype == torch.float32
            assert 0 <= split["pixel_values"].min() <= split["pixel_values"].max() <= 1
            assert split["labels"].dtype == torch.int64
            classes = 2 if name == "large" else 10
            assert set(split["labels"].tolist()) == set(range(classes))


def test_large_is_the_transposed_negative_with_labels_that_belong_to_it() -> None:
    split = split_tasks(DIGITS, GARMENTS, 0)["large"]["validation"]
    numbers = _numbers(1 - split["pixel_values"].transpose(2, 3))
    assert [int(number % 10 >= 5) for number in numbers] == split["labels"].tolist()
    assert split["pixel_values"][:, 0, 5, 5].eq(1).all()


@pytest.mark.parametrize("seed", [0, 7])
def test_no_image_is_in_two_splits(seed: int) -> None:
    tasks = split_tasks(DIGITS, GARMENTS, seed)
    seen: list[int] = []
    for name, parts in tasks.items():
        for split in parts.values():
            pixels = split["pixel_values"]
            seen += _numbers(1 - pixels.transpose(2, 3) if name == "large" else pixels)
    assert len(seen) == len(set(seen)) == 3 * sum(_SIZES.values())
    held_back = split_pretraining(DIGITS[0], GARMENTS[0], seed)
    order = [
        torch.randperm(9000, generator=torch.Generator().manual_seed(seed))[:2000] + first
        for first in (0, 20000)
    ]
    assert not set(torch.cat(order).tolist()) & set(seen)
    labels = held_back["labels"]
    assert labels.tolist() == [*(order[0] % 10).tolist(), *(order[1] % 10 + 10).tolist()]


def test_idx_files_are_read() -> None:
    labels = bytes(8) + bytes([3, 9])
    images = bytes(16) + bytes(range(256)) * 6 + bytes(32)
    pixels, classes = read_images(images, labels)
    assert classes.tolist() == [3, 9]
    assert pixels.shape == (2, 1, 28, 28)
    assert pixels.flatten()[:300].tolist() == [*range(256), *range(44)]


def test_the_real_images() -> None:
    try:
        tasks = load_tasks(default_cache())
    except FetchError as error:
        pytest.skip(str(error))
    for name, parts in tasks.items():
        counts = parts["train"]["labels"].bincount()
        assert len(counts) == (2 if name == "large" else 10)
        assert counts.min() > 0.07 * counts.sum()
    dark = {name: parts["train"]["pixel_values"].mean() for name, parts in tasks.items()}
    assert dark["digits"] < 0.2 < dark["garments"] < 0.4 < dark["large"]
    assert pretraining_data(default_cache())["labels"].unique().tolist() == list(range(20))
