from __future__ import annotations

import pytest
import torch
from torch import Tensor

from studies.digits.data import load_tasks, pretraining_data

_SIZES = {"train": 600, "validation": 300, "test": 397}
_BACK = {
    "upright": lambda images: images,
    "rotated": lambda images: torch.rot90(images, 2, (2, 3)),
    "mirrored": lambda images: torch.fliplr(images.movedim(3, 1)).movedim(1, 3),
}


def _keys(images: Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


def test_shapes_types_range_and_classes() -> None:
    tasks = load_tasks()
    assert list(tasks) == list(_BACK)
    for parts in tasks.values():
        assert {name: len(split["labels"]) for name, split in parts.items()} == _SIZES
        for split in parts.values():
            images, labels = split["pixel_values"], split["labels"]
            assert images.shape == (len(labels), 1, 8, 8)
            assert images.dtype == torch.float32
            assert images.is_contiguous()
            assert images.min() == 0
            assert images.max() == 1
            assert labels.dtype == torch.int64
            counts = labels.bincount()
            assert len(counts) == 10
            assert counts.min() > 0.06 * len(labels)
            assert counts.max() < 0.15 * len(labels)


@pytest.mark.parametrize("seed", [0, 7])
def test_no_image_is_in_two_splits_in_any_orientation(seed: int) -> None:
    held_back = pretraining_data(seed)
    clean = pretraining_data(seed)["pixel_values"]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    sets = {"pretraining": set(_keys(((clean - 0.5 * noise) * 16).round() / 16))}
    tasks = load_tasks(seed)
    for part in _SIZES:
        views = [_keys(back(tasks[task][part]["pixel_values"])) for task, back in _BACK.items()]
        assert views[0] == views[1] == views[2]
        sets[part] = set(views[0])
    assert len(held_back["labels"]) == 500
    assert len(set.union(*sets.values())) == sum(map(len, sets.values())) == 1797


def test_the_splits_depend_on_the_seed_alone() -> None:
    first, again, other = load_tasks(3), load_tasks(3), load_tasks(4)
    for task, parts in first.items():
        for name, split in parts.items():
            for column, values in split.items():
                assert torch.equal(values, again[task][name][column])
                assert not torch.equal(values, other[task][name][column])
    assert torch.equal(pretraining_data(3)["pixel_values"], pretraining_data(3)["pixel_values"])
    assert not torch.equal(pretraining_data(3)["labels"], pretraining_data(4)["labels"])


def test_the_tasks_conflict() -> None:
    """Nearest neighbour, trained on one task, reads its own images and not the others'."""
    tasks = load_tasks()

    def accuracy(trained: str, tested: str) -> float:
        train, test = tasks[trained]["train"], tasks[tested]["validation"]
        distances = torch.cdist(test["pixel_values"].flatten(1), train["pixel_values"].flatten(1))
        answers = train["labels"][distances.argmin(1)]
        return float((answers == test["labels"]).float().mean())

    for trained in tasks:
        for tested in tasks:
            if trained == tested:
                assert accuracy(trained, tested) > 0.9
            else:
                assert accuracy(trained, tested) < 0.5
