"""Two tasks of the conflict study have the same images and disagree on some of them."""

from __future__ import annotations

import torch

from studies.conflict.data import load_tasks


def test_plain_and_swapped_disagree_on_four_of_ten_digits() -> None:
    tasks = load_tasks()
    assert list(tasks) == ["plain", "swapped", "rotated", "mirrored"]
    for part in ("train", "validation", "test"):
        plain, swapped = tasks["plain"][part], tasks["swapped"][part]
        assert torch.equal(plain["pixel_values"], swapped["pixel_values"])
        pairs = set(zip(plain["labels"].tolist(), swapped["labels"].tolist()))
        assert {pair for pair in pairs if pair[0] != pair[1]} == {(3, 8), (8, 3), (4, 9), (9, 4)}
        assert len(pairs) == 10
        assert torch.equal(plain["labels"], tasks["rotated"][part]["labels"])
