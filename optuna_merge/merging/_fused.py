"""Elementwise merges of whole models in one pass over memory, where Numba is installed.

Eager tensor operations read and write every intermediate result; the kernels read each input once,
write each output once, and sum in fp64. They take contiguous fp32 and bf16 tensors on the CPU with
positive fp32 precisions; what doesn't fit is left to `merge_tensor`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Precision = Tensor | float

_logger = logging.getLogger(__name__)

_CHUNK = 1 << 16
"""Elements of one piece of work."""
_WORTH_A_THREAD = 1 << 20
"""Elements written below which a second thread costs more than it saves."""
_ONES = np.ones(1 << 10, np.float32)
"""At least a block of the kernels."""

_KNOWN = frozenset({torch.float32, torch.bfloat16})

Array = npt.NDArray[Any]


class Item(NamedTuple):
    """One tensor of a merge, with a mean and a precision per term."""

    output: Tensor
    means: list[Tensor]
    precisions: list[Precision]


class _Kind(NamedTuple):
    """What a kernel is compiled or chosen for."""

    source: torch.dtype
    target: torch.dtype
    scalar: bool


@lru_cache(maxsize=1)
def kernels() -> ModuleType | None:
    """The compiled kernels, or None without Numba, or where it finds no place for its cache."""
    try:
        from optuna_merge.merging import _kernels
    except (ImportError, RuntimeError) as error:
        _logger.debug("merging by tensor operations: %s", error)
        return None
    return _kernels


def merge_fused(items: Iterable[Item], weights: Sequence[float]) -> list[Item]:
    """Merge the tensors that the kernels can take, precisions positive; return the others."""
    groups: dict[_Kind | None, list[Item]] = {}
    for item in items:
        groups.setdefault(_kind(item) if kernels() else None, []).append(item)
    rest = groups.pop(None, [])
    for kind, group in groups.items():
        assert kind is not None
        _merge(kind, group, np.array(weights, dtype=float))
    return rest


def _kind(item: Item) -> _Kind | None:
    """The kernel that can take the item, if there is one."""
    precisions = [p for p in item.precisions if isinstance(p, Tensor)]
    if not all(t.is_cpu and t.is_contiguous() for t in (item.output, *item.means, *precisions)):
        return None
    sources, target = {m.dtype for m in item.means}, item.output.dtype
    if not _KNOWN.issuperset(sources | {target}) or len(sources) > 1:
        return None
    if any(precision.dtype != torch.float32 for precision in precisions):
        return None
    return _Kind(sources.pop(), target, scalar=not precisions)


def _merge(kind: _Kind, items: Sequence[Item], given: Array) -> None:
    """Merge items of one kind."""
    compiled = kernels()
    assert compiled is not None
    bf16 = torch.bfloat16
    source = compiled.BFLOAT if kind.source == bf16 else compiled.FLOAT
    target = compiled.BFLOAT if kind.target == bf16 else compiled.FLOAT
    # A precision that is a number goes into the weight, and ones stand in its place.
    numbers = [[1.0 if isinstance(p, Tensor) else p for p in item.precisions] for item in items]
    weights = np.array(numbers) * given
    outputs = _addresses([[item.output] for item in items])[0]
    means = _padded(_addresses([item.means for item in items]), axis=0, mode="edge")
    chunks = _chunks([item.means[0].numel() for item in items])
    if kind.scalar:
        weights /= weights.sum(axis=1, keepdims=True)
        arguments: tuple[Array, ...] = (outputs, means, _padded(weights, axis=1))
        kernel = compiled.linear
    else:
        steps = np.array([[isinstance(p, Tensor) for p in item.precisions] for item in items]).T
        precisions = _addresses([item.precisions for item in items])
        arguments = (
            outputs,
            means,
            _padded(precisions, axis=0, mode="edge"),
            _padded(steps.astype(np.int64), axis=0, mode="edge"),
            _padded(weights, axis=1),
        )
        kernel = compiled.weighted
    written = sum(item.output.numel() for item in items)
    threads = torch.get_num_threads() if written > _WORTH_A_THREAD else 1
    _in_threads(lambda part: kernel(*arguments, part, source, target), chunks, threads)
    # Autograd, and the checks of posteriors, notice changes by this count.
    changed = [item.output for item in items if not item.output.is_inference()]
    torch.autograd.graph.increment_version(changed)


def _addresses(rows: Sequence[Sequence[Precision]]) -> Array:
    """Addresses [k, item] of the tensors [item][k]; those of ones for numbers."""
    ones = _ONES.ctypes.data
    table = [[t.data_ptr() if isinstance(t, Tensor) else ones for t in row] for row in rows]
    return np.ascontiguousarray(np.array(table, dtype=np.int64).T)


def _padded(array: Array, *, axis: int, mode: Any = "constant") -> Array:
    """The array with its terms padded to a multiple of four: with zeros, or its last term."""
    widths = [(0, -array.shape[axis] % 4 if k == axis else 0) for k in range(array.ndim)]
    return np.ascontiguousarray(np.pad(array, widths, mode=mode))


def _chunks(sizes: Sequence[int]) -> Array:
    """Rows (item, first element, end), at most `_CHUNK` elements each."""
    rows = [
        (item, start, min(start + _CHUNK, size))
        for item, size in enumerate(sizes)
        for start in range(0, size, _CHUNK)
    ]
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def _in_threads(work: Callable[[Array], None], chunks: Array, threads: int) -> None:
    if threads == 1:
        work(chunks)
        return
    # Threads of this call alone: a pool that is kept would be dead in a forked process.
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, part) for part in np.array_split(chunks, threads)]:
            done.result()
