"""Isotropic and diagonal Gaussians: each coordinate is merged by itself.

The merged mean is the precision-weighted one,

    S_a = sum_t a_t S_t,    m_a = S_a^-1 sum_t a_t S_t m_t,

(arXiv 2412.08147; with a small prior it is Fisher merging, arXiv 2111.09832). It is accumulated as
a running mean, so that rounding errors are relative to the distance between the means, not to
their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from optuna_merge.merging._fused import Item, Precision, merge_fused

__all__ = ["Item", "merge_items"]

_BLOCK = 3 << 17
"""Most coordinates merged at a time on the CPU: few for the cache, many to hide the calls."""

_NEGLIGIBLE = 1e-30
"""Weights below this fraction of the largest are left out: ratios must stay within fp32."""

Term = tuple[float, Tensor, Precision]
"""Weight, and one block of mean and precision."""


def merge_items(
    items: Sequence[Item], weights: Sequence[float], *, vanishing: bool = True
) -> None:
    """Merge tensors, with one weight per term; `vanishing`: some precision may be zero."""
    # The kernels divide by precisions, of which none may be zero.
    for item in items if vanishing else merge_fused(items, weights):
        _merge_item(item, weights, vanishing=vanishing)


def _merge_item(item: Item, weights: Sequence[float], *, vanishing: bool) -> None:
    """Merge one tensor by tensor operations: on any device, of any types."""
    output, means, precisions = item
    dtypes = {t.dtype for t in (*means, *precisions) if isinstance(t, Tensor)}
    dtype = reduce(torch.promote_types, dtypes, torch.float32)
    size = max(1, means[0].numel())
    count = -(-size // _BLOCK) if means[0].device.type == "cpu" else 1
    block = -(-size // count)
    order = _order(weights)
    mean_blocks = {k: _split(means[k], block) for k in order}
    precision_blocks = {
        k: _split(p, block) for k in order if isinstance(p := precisions[k], Tensor)
    }
    work: tuple[Tensor, ...] = ()
    for i, out in enumerate(_split(output, block)):
        terms: list[Term] = [
            (
                weights[k],
                mean_blocks[k][i].to(dtype),
                precision_blocks[k][i].to(dtype) if k in precision_blocks else precisions[k],
            )
            for k in order
        ]
        if not work or len(work[0]) != len(out):
            work = tuple(torch.empty_like(terms[0][1]) for _ in range(3))
        _merge_block(terms, out, work, vanishing=vanishing)


def _merge_block(
    terms: Sequence[Term], out: Tensor, work: Sequence[Tensor], *, vanishing: bool
) -> None:
    """The terms one after the other: those so far are a Gaussian of `precision` times `weight`.

    They come with falling weights, which keeps every partial sum of precisions positive, whatever
    the signs of the weights, as long as the whole sum is. Where all precisions so far are zero,
    the mean is weighted by the weights alone: the limit of equal precisions that tend to zero.
    """
    (weight, mean, precision), *others = terms
    total = weight
    merged, share, running = work
    for place, (next_weight, next_mean, next_precision) in enumerate(others, 1):
        total, ratio = total + next_weight, weight / next_weight
        into = out if place == len(others) and out.dtype == mean.dtype else running
        if isinstance(next_precision, float) and isinstance(precision, float):
            precision = next_precision + precision * ratio
            part = next_precision / precision if precision else next_weight / total
            torch.lerp(mean, next_mean, part, out=into)
        else:
            one, other = (
                p if isinstance(p, Tensor) else next_mean.new_tensor(p)
                for p in (next_precision, precision)
            )
            precision = torch.add(one, other, alpha=ratio, out=merged)
            torch.div(one, merged, out=share)
            if vanishing:
                share.masked_fill_(merged == 0, next_weight / total)
            torch.lerp(mean, next_mean, share, out=into)
        weight, mean = next_weight, into
    if mean is not out:
        out.copy_(mean)


def _order(weights: Sequence[float]) -> list[int]:
    """The terms that count, by falling weight."""
    least = _NEGLIGIBLE * max(abs(weight) for weight in weights)
    kept = (k for k, weight in enumerate(weights) if abs(weight) > least)
    return sorted(kept, key=lambda k: -weights[k])


def _split(tensor: Tensor, block: int) -> Sequence[Tensor]:
    """Blocks of the tensor, flattened: views if it is contiguous."""
    flat = tensor.detach().reshape(-1)
    return (flat,) if len(flat) <= block else torch.split(flat, block)
