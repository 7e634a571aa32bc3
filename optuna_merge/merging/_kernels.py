"""Elementwise merges as loops over memory, compiled by Numba: one pass, sums in fp64 registers.

Tensors come as addresses, so that one call merges all tensors of a model, whatever their number:
`outputs[tensor]`, and `means[t, tensor]` and so on of term t. Terms are padded to a multiple of
four with terms of weight zero. Work is cut into chunks (tensor, first element, end), which threads
can share: no lock is held while a kernel runs. `source` and `target` are items of the means' and
the outputs' memory, for their types alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic, overload

FLOAT, BFLOAT = np.float32(0), np.uint16(0)
"""Items of memory: fp32, and bf16 as its bits."""

_BLOCK = 512
"""Elements whose products of precision and mean stay in the nearest cache."""

_OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}, "cache": True}


@njit(**_OPTIONS)
def linear(outputs: Any, means: Any, shares: Any, chunks: Any, source: Any, target: Any) -> None:
    """out = sum_t shares[tensor, t] m_t."""
    sums = np.empty(_BLOCK)
    for c in range(len(chunks)):
        tensor, first, end = chunks[c]
        for start in range(first, end, _BLOCK):
            size = min(_BLOCK, end - start)
            out = _at(outputs[tensor], start, size, target)
            for t in range(0, len(means), 4):
                wa, wb, wc, wd = shares[tensor, t : t + 4]
                ma = _at(means[t, tensor], start, size, source)
                mb = _at(means[t + 1, tensor], start, size, source)
                mc = _at(means[t + 2, tensor], start, size, source)
                md = _at(means[t + 3, tensor], start, size, source)
                if len(means) == 4:
                    for i in range(size):
                        one = wa * _read(ma[i]) + wb * _read(mb[i])
                        two = wc * _read(mc[i]) + wd * _read(md[i])
                        out[i] = _write(one + two, target)
                    continue
                for i in range(size):
                    one = wa * _read(ma[i]) + wb * _read(mb[i])
                    two = wc * _read(mc[i]) + wd * _read(md[i])
                    sums[i] = one + two if t == 0 else sums[i] + (one + two)
            if len(means) > 4:
                for i in range(size):
                    out[i] = _write(sums[i], target)


@njit(**_OPTIONS)
def weighted(
    outputs: Any,
    means: Any,
    precisions: Any,
    steps: Any,
    weights: Any,
    chunks: Any,
    source: Any,
    target: Any,
) -> None:
    """out = sum_t w_t s_t m_t / sum_t w_t s_t with w = weights[tensor] and fp32 s.

    A precision whose step is 0 is one block of ones: its number is in the weight.
    """
    upper, lower = np.empty(_BLOCK), np.empty(_BLOCK)
    for c in range(len(chunks)):
        tensor, first, end = chunks[c]
        for start in range(first, end, _BLOCK):
            size = min(_BLOCK, end - start)
            out = _at(outputs[tensor], start, size, target)
            for t in range(0, len(means), 4):
                wa, wb, wc, wd = weights[tensor, t : t + 4]
                m, s, step = means[t:, tensor], precisions[t:, tensor], steps[t:, tensor]
                ma, mb = _at(m[0], start, size, source), _at(m[1], start, size, source)
                mc, md = _at(m[2], start, size, source), _at(m[3], start, size, source)
                sa = _at(s[0], start * step[0], size, FLOAT)
                sb = _at(s[1], start * step[1], size, FLOAT)
                sc = _at(s[2], start * step[2], size, FLOAT)
                sd = _at(s[3], start * step[3], size, FLOAT)
                if len(means) == 4:
                    for i in range(size):
                        pa, pb, pc, pd = _read(sa[i]), _read(sb[i]), _read(sc[i]), _read(sd[i])
                        one = wa * (pa * _read(ma[i])) + wb * (pb * _read(mb[i]))
                        two = wc * (pc * _read(mc[i])) + wd * (pd * _read(md[i]))
                        below = (wa * pa + wb * pb) + (wc * pc + wd * pd)
                        out[i] = _write((one + two) / below, target)
                    continue
                for i in range(size):
                    pa, pb, pc, pd = _read(sa[i]), _read(sb[i]), _read(sc[i]), _read(sd[i])
                    one = wa * (pa * _read(ma[i])) + wb * (pb * _read(mb[i]))
                    two = wc * (pc * _read(mc[i])) + wd * (pd * _read(md[i]))
                    below = (wa * pa + wb * pb) + (wc * pc + wd * pd)
                    upper[i] = one + two if t == 0 else upper[i] + (one + two)
                    lower[i] = below if t == 0 else lower[i] + below
            if len(means) > 4:
                for i in range(size):
                    out[i] = _write(upper[i] / lower[i], target)


@njit(inline="always")
def _at(address: Any, start: Any, size: Any, item: Any) -> Any:
    """The array of `size` items that begins `start` items after the address."""
    return carray(_pointer(address, start, item), size)


@intrinsic
def _pointer(context: Any, address: Any, start: Any, item: Any) -> Any:
    pointer = types.CPointer(item)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first = builder.inttoptr(arguments[0], context.get_value_type(pointer))
        return builder.gep(first, [arguments[1]])

    return pointer(address, start, item), generate


@intrinsic
def _bits(context: Any, value: Any, item: Any) -> Any:
    """The value's bits read as the type of `item`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(item))

    return item(value, item), generate


def _read(value: Any) -> Any:
    """An item of memory as fp64."""


@overload(_read)
def _read_item(value: Any) -> Any:
    def from_float(value: Any) -> Any:
        return np.float64(value)

    def from_bfloat(value: Any) -> Any:
        return np.float64(_bits(np.uint32(np.uint32(value) << np.uint32(16)), FLOAT))

    return from_float if isinstance(value, types.Float) else from_bfloat


def _write(value: Any, item: Any) -> Any:
    """An fp64 as an item of memory: to the nearest, ties to even."""


@overload(_write)
def _write_item(value: Any, item: Any) -> Any:
    def to_float(value: Any, item: Any) -> Any:
        return np.float32(value)

    def to_bfloat(value: Any, item: Any) -> Any:
        bits = _bits(np.float32(value), np.uint32(0))
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        return np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

    return to_float if isinstance(item, types.Float) else to_bfloat
