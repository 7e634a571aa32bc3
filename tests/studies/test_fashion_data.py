"""The fashion study's splits, on made-up images; and on the real ones where they can be had."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from studies.fashion.data import (
    CLASSES,
    load_tasks,
    pretraining_data,
    split_pretraining,
    split_tasks,
)
from studies.fetch import FetchError, default_cache
from studies.idx import Images

_SIZES = {"train": 2000, "validation": 600, "test": 1000}


def _made_up(size: int, first: int) -> Images:
    """Images that are all different: their numbers from `first` on, written in two pixels."""
    numbers = torch.arange(first, first + size)
    pixels = torch.zeros(size, 1, 28, 28, dtype=torch.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = numbers // 256, numbers % 256
    return pixels, numbers % 10


TRAIN, TEST = _made_up(20000, 0), _made_up(5000, 30000)


def _numbers(pixel_values: Tensor) -> list[int]:
    high, low = (pixel_values[:, 0, 0, :2] * 255).round().long().T
    return (high * 256 + low).tolist()  # type: ignore[no-any-return]


def test_shapes_types_range_and_classes() -> None:
    tasks = split_tasks(TRAIN, TEST, 0)
    assert {name: set(classes) for name, classes in CLASSES.items()} == {
        name: set(parts["train"]["labels"].tolist()) for name, parts in tasks.items()
    }
    for name, parts in tasks.items():
        sizes = {part: len(split["labels"]) for part, split in parts.items()}
        assert sizes == _SIZES
        for split in parts.values():
            assert set(split["labels"].tolist()) == set(CLASSES[name])
            assert split["labels"].dtype == torch.int64
            assert split["pixel_values"].shape == (len(split["labels"]), 1, 28, 28)
            assert split["pixel_values"].dtype == torch.float32
            assert split["pixel_values"].max() <= 1
            # Pixels and classes still belong together.
            found = [number % 10 for number in _numbers(split["pixel_values"])]
            assert found == split["labels"].tolist()


@pytest.mark.parametrize("seed", [0, 7])
def test_no_image_is_in_two_splits(seed: int) -> None:
    tasks = split_tasks(TRAIN, TEST, seed)
    held_back = split_pretraining(TRAIN, seed)
    noise = torch.randn(held_back["pixel_values"].shape, generator=_generator(seed))
    used = _numbers(held_back["pixel_values"] - 0.5 * noise)
    assert len(used) == 4000
    assert set(held_back["labels"].tolist()) == set(range(10))
    for parts in tasks.values():
        for part, split in parts.items():
            numbers = _numbers(split["pixel_values"])
            assert (min(numbers) >= 30000) == (part == "test")
            used += numbers
    assert len(set(used)) == len(used) == 4000 + 3 * sum(_SIZES.values())


def test_the_splits_depend_on_the_seed_alone() -> None:
    first, again, other = (split_tasks(TRAIN, TEST, seed) for seed in (3, 3, 4))
    for task, parts in first.items():
        for name, split in parts.items():
            for column, values in split.items():
                assert torch.equal(values, again[task][name][column])
                assert not torch.equal(values, other[task][name][column])
    held_back = [split_pretraining(TRAIN, seed) for seed in (3, 3, 4)]
    assert torch.equal(held_back[0]["pixel_values"], held_back[1]["pixel_values"])
    assert not torch.equal(held_back[0]["labels"], held_back[2]["labels"])


def test_the_real_images() -> None:
    """Of Debian's package: skipped where apt-get has it not."""
    try:
        tasks = load_tasks(default_cache())
    except FetchError as error:
        pytest.skip(str(error))
    held_back = pretraining_data(default_cache())
    assert held_back["pixel_values"].std() > 0.5
    assert held_back["labels"].bincount(minlength=10).min() > 300
    for name, parts in tasks.items():
        assert {part: len(split["labels"]) for part, split in parts.items()} == _SIZES
        for split in parts.values():
            assert split["pixel_values"].min() == 0
            assert split["pixel_values"].max() == 1
            counts = split["labels"].bincount(minlength=10)
            share = len(split["labels"]) / len(CLASSES[name])
            for label in CLASSES[name]:
                assert 0.8 * share < counts[label] < 1.2 * share
        # The nearest class mean is right twice as often as by chance: labels fit their images.
        train, test = parts["train"], parts["test"]
        means = torch.stack(
            [train["pixel_values"][train["labels"] == c].mean(0) for c in CLASSES[name]]
        )
        distances = torch.cdist(test["pixel_values"].flatten(1), means.flatten(1))
        answers = torch.tensor(CLASSES[name])[distances.argmin(1)]
        assert (answers == test["labels"]).float().mean() > 2 / len(CLASSES[name])


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
