"""Elementwise merges as loops over memory, compiled by Numba: one pass, sums in fp64 registers.

Tensors come as addresses, so that one call merges all tensors of a model, whatever their number:
`outputs[k, tensor]` of weighting k, `means[t, tensor]` and so on of term t. The terms are padded
to a multiple of four with terms of weight zero. Work is cut into chunks (tensor, first element,
end), which threads can share: no lock is held while a kernel runs. `source` and `target` are items
of the means' and the outputs' memory, for their types alone.
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
    """out_k = sum_t shares[tensor, k, t] m_t."""
    sums = np.empty(_BLOCK)
    for c in range(len(chunks)):
        tensor, first, end = chunks[c]
        for start in range(first, end, _BLOCK):
            size = min(_BLOCK, end - start)
            for k in range(len(outputs)):
                out = _at(outputs[k, tensor], start, size, target)
                for t in range(0, len(means), 4):
                    wa, wb, wc, wd = shares[tensor, k, t : t + 4]
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
    """out_k = sum_t w_t s_t m_t / sum_t w_t s_t with w = weights[tensor, k] and fp32 s.

    A precision whose step is 0 is one block of ones: its number is in the weight.
    """
    terms = len(means)
    p, q = np.empty((terms, _BLOCK)), np.empty((terms, _BLOCK))
    upper, lower = np.empty(_BLOCK), np.empty(_BLOCK)
    for c in range(len(chunks)):
        tensor, first, end = chunks[c]
        for start in range(first, end, _BLOCK):
            size = min(_BLOCK, end - start)
            if len(outputs) == 1 and terms == 4:
                out = _at(outputs[0, tensor], start, size, target)
                m, s = means[:, tensor], precisions[:, tensor]
                _in_registers(
                    out, m, s, steps[:, tensor], weights[tensor, 0], start, source, target
                )
                continue
            for t in range(terms):
                m = _at(means[t, tensor], start, size, source)
                s = _at(precisions[t, tensor], start * steps[t, tensor], size, FLOAT)
                pt, qt = p[t], q[t]
                for i in range(size):
                    pt[i] = _read(s[i])
                    qt[i] = _read(s[i]) * _read(m[i])
            # What is loaded of four terms serves two outputs.
            pairs = len(outputs) // 2 if terms == 4 else 0
            for k in range(0, 2 * pairs, 2):
                one = _at(outputs[k, tensor], start, size, target)
                two = _at(outputs[k + 1, tensor], start, size, target)
                _pair(one, two, p, q, weights[tensor, k], weights[tensor, k + 1], target)
            for k in range(2 * pairs, len(outputs)):
                out = _at(outputs[k, tensor], start, size, target)
                for t in range(0, terms, 4):
                    four = slice(t, t + 4)
                    _add_four(
                        upper[:size], lower[:size], p[four], q[four], weights[tensor, k, four], t
                    )
                for i in range(size):
                    out[i] = _write(upper[i] / lower[i], target)


@njit
def _in_registers(
    out: Any, m: Any, s: Any, steps: Any, w: Any, start: Any, source: Any, target: Any
) -> None:
    size = len(out)
    wa, wb, wc, wd = w
    ma, mb = _at(m[0], start, size, source), _at(m[1], start, size, source)
    mc, md = _at(m[2], start, size, source), _at(m[3], start, size, source)
    sa, sb = _at(s[0], start * steps[0], size, FLOAT), _at(s[1], start * steps[1], size, FLOAT)
    sc, sd = _at(s[2], start * steps[2], size, FLOAT), _at(s[3], start * steps[3], size, FLOAT)
    for i in range(size):
        pa, pb, pc, pd = _read(sa[i]), _read(sb[i]), _read(sc[i]), _read(sd[i])
        one = wa * (pa * _read(ma[i])) + wb * (pb * _read(mb[i]))
        two = wc * (pc * _read(mc[i])) + wd * (pd * _read(md[i]))
        out[i] = _write((one + two) / ((wa * pa + wb * pb) + (wc * pc + wd * pd)), target)


@njit
def _pair(one: Any, two: Any, p: Any, q: Any, w: Any, v: Any, target: Any) -> None:
    wa, wb, wc, wd = w
    va, vb, vc, vd = v
    pa, pb, pc, pd = p[0], p[1], p[2], p[3]
    qa, qb, qc, qd = q[0], q[1], q[2], q[3]
    for i in range(len(one)):
        a, b, c, d, e, f, g, h = pa[i], pb[i], pc[i], pd[i], qa[i], qb[i], qc[i], qd[i]
        above, below = (wa * e + wb * f) + (wc * g + wd * h), (wa * a + wb * b) + (wc * c + wd * d)
        one[i] = _write(above / below, target)
        above, below = (va * e + vb * f) + (vc * g + vd * h), (va * a + vb * b) + (vc * c + vd * d)
        two[i] = _write(above / below, target)


@njit
def _add_four(upper: Any, lower: Any, p: Any, q: Any, w: Any, t: Any) -> None:
    wa, wb, wc, wd = w
    pa, pb, pc, pd = p[0], p[1], p[2], p[3]
    qa, qb, qc, qd = q[0], q[1], q[2], q[3]
    for i in range(len(upper)):
        above = (wa * qa[i] + wb * qb[i]) + (wc * qc[i] + wd * qd[i])
        below = (wa * pa[i] + wb * pb[i]) + (wc * pc[i] + wd * pd[i])
        upper[i] = above if t == 0 else upper[i] + above
        lower[i] = below if t == 0 else lower[i] + below


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
