"""Memory for merged tensors: one piece for all of a model's, used again once they are gone."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from itertools import accumulate
from operator import mul
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_ALIGNMENT = 64
_MOST_KEPT = 256 << 20
"""Bytes of the largest piece that is kept for the next merge."""

Bytes = npt.NDArray[np.uint8]

_spare: list[Bytes] = []


def empty_like(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Uninitialised contiguous tensors; on the CPU all in one piece of memory.

    The first use of fresh memory takes as long as the merge itself, even in huge pages. So the
    last piece whose tensors are all gone is kept for the next merge of this size.
    """
    if any(tensor.device.type != "cpu" for tensor in tensors.values()):
        return {
            name: torch.empty_like(tensor, memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors.values()]
    ends = list(accumulate(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes))
    arena = torch.from_numpy(_array(ends[-1] + _ALIGNMENT))
    first = -arena.data_ptr() % _ALIGNMENT
    arena = arena[first : first + ends[-1]]
    flat = {dtype: arena.view(dtype) for dtype in {tensor.dtype for tensor in tensors.values()}}
    pieces = {}
    for (name, tensor), start in zip(tensors.items(), [0, *ends]):
        whole = flat[tensor.dtype]
        offset = whole.storage_offset() + start // tensor.element_size()
        # Strides of a contiguous tensor.
        strides = list(accumulate(tensor.shape[:0:-1], mul, initial=1))[::-1][: tensor.ndim]
        pieces[name] = whole.as_strided(tensor.shape, strides, offset)
    return pieces


def _array(size: int) -> Bytes:
    """An array that gives its memory back to the spare when nothing refers to it any more."""
    kept = _spare.pop() if _spare else None
    memory = kept if kept is not None and len(kept) == size else np.empty(size, np.uint8)
    if size > _MOST_KEPT:
        return memory
    array: Bytes = memory.view()
    weakref.finalize(array, _give_back, memory).atexit = False
    return array


def _give_back(memory: Any) -> None:
    _spare[:] = [memory]
