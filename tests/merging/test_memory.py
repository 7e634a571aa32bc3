"""Memory of merged tensors: used again, but never while somebody still has a tensor of it."""

from __future__ import annotations

import torch

from optuna_merge.merging import _gaussians as memory
from optuna_merge.merging._gaussians import empty_like

LIKE = {"a": torch.zeros(3, 5), "b": torch.zeros((), dtype=torch.bfloat16), "c": torch.zeros(0)}


def test_shapes_types_and_alignment() -> None:
    made = empty_like(LIKE)
    assert {k: (t.shape, t.dtype) for k, t in made.items()} == {
        k: (t.shape, t.dtype) for k, t in LIKE.items()
    }
    assert all(t.is_contiguous() and t.data_ptr() % 64 == 0 for t in made.values() if t.numel())


def test_memory_is_used_again_when_the_last_tensor_is_gone() -> None:
    first = empty_like(LIKE)
    place = first["a"].data_ptr()
    kept = first["b"]
    kept.fill_(1.5)
    del first
    second = empty_like(LIKE)
    second["a"].zero_()
    second["b"].zero_()
    assert second["a"].data_ptr() != place  # one tensor of the first is in use
    assert float(kept) == 1.5
    del kept
    third = empty_like(LIKE)
    assert third["a"].data_ptr() == place


def test_a_slice_keeps_its_memory() -> None:
    row = empty_like(LIKE)["a"][1]
    row.fill_(7.0)
    for _ in range(3):
        for tensor in empty_like(LIKE).values():
            tensor.zero_()
    assert row.tolist() == [7.0] * 5


def test_large_memory_goes_back_to_the_system() -> None:
    memory._spare.clear()
    del empty_like({"a": torch.empty(1, dtype=torch.uint8).expand(memory._MOST_KEPT)})["a"]
    assert not memory._spare
