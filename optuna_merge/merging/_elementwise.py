"""Isotropic and diagonal Gaussians: each coordinate is merged by itself.

The merged mean is the precision-weighted one,

    S_a = sum_t a_t S_t,    m_a = S_a^-1 sum_t a_t S_t m_t,

where the prior is one more term, of weight 1 - sum_t a_t (arXiv 2412.08147; on the simplex and
with a small prior it is Fisher merging, arXiv 2111.09832). It is accumulated as a running mean,
so that rounding errors are relative to the distance between the means, not to their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from optuna_merge.merging._fused import Item, Precision, merge_fused

__all__ = ["Item", "merge_items"]

_BLOCK = 3 << 17
"""Most coordinates merged at a time on the CPU: few for the cache, many to hide the calls."""

_NEGLIGIBLE = 1e-30
"""Weights below this fraction of the largest are left out: ratios must stay within fp32."""


@dataclass(slots=True)
class Running:
    """The terms so far: a Gaussian of precision `precision` times `weight`, the last term's."""

    mean: Tensor
    precision: Precision
    weight: float
    total: float


@dataclass(frozen=True)
class Workspace:
    """Buffers for one block; `vanishing` says that precisions may be zero."""

    precision: Tensor
    share: Tensor
    mean: Tensor
    vanishing: bool


def accumulate(
    state: Running | None,
    weight: float,
    mean: Tensor,
    precision: Precision,
    work: Workspace,
    into: Tensor,
) -> Running:
    """Add one block of a term of nonzero weight to the state; the new running mean goes to `into`.

    Terms come with falling weights, which keeps every partial sum of precisions positive, whatever
    the signs of the weights, as long as the whole sum is. Where all precisions so far are zero,
    the mean is weighted by the weights alone: the limit of equal precisions that tend to zero.
    """
    if state is None:
        return Running(mean, precision, weight, weight)
    total = state.total + weight
    ratio = state.weight / weight
    if isinstance(precision, float) and isinstance(state.precision, float):
        merged = precision + state.precision * ratio
        share = precision / merged if merged else weight / total
        return Running(torch.lerp(state.mean, mean, share, out=into), merged, weight, total)
    one, other = (_as_tensor(value, mean) for value in (precision, state.precision))
    torch.add(one, other, alpha=ratio, out=work.precision)
    torch.div(one, work.precision, out=work.share)
    if work.vanishing:
        work.share.masked_fill_(work.precision == 0, weight / total)
    torch.lerp(state.mean, mean, work.share, out=into)
    return Running(into, work.precision, weight, total)


def solve(state: Running) -> Tensor:
    """The merged mean of the accumulated terms."""
    return state.mean


def merge_items(
    items: Sequence[Item], weightings: Sequence[Sequence[float]], *, vanishing: bool = True
) -> None:
    """Merge several tensors for several weightings (one weight per term), reading each input once.

    An output may be one of the means only if there is a single weighting. `vanishing`: some
    precision may be zero.
    """
    # The kernels divide by precisions, of which none may be zero.
    for item in items if vanishing else merge_fused(items, weightings):
        _merge_item(item, weightings, vanishing=vanishing)


def _merge_item(
    item: Item, weightings: Sequence[Sequence[float]], *, vanishing: bool = True
) -> None:
    """Merge one tensor by tensor operations: on any device, of any types."""
    outputs, means, precisions = item
    dtypes = {t.dtype for t in (*means, *precisions) if isinstance(t, Tensor)}
    dtype = reduce(torch.promote_types, dtypes, torch.float32)
    size = max(1, means[0].numel())
    count = -(-size // _BLOCK) if means[0].device.type == "cpu" else 1
    block = -(-size // count)
    orders = [_order(weights) for weights in weightings]
    used = sorted(set().union(*orders))
    mean_blocks = {k: _split(means[k], block) for k in used}
    precision_blocks = {
        k: _split(p, block) for k in used if isinstance(p := precisions[k], Tensor)
    }
    output_blocks = [_split(output, block) for output in outputs]
    work = None
    for i in range(len(output_blocks[0])):
        mean = {k: mean_blocks[k][i].to(dtype) for k in used}
        precision = {
            k: precision_blocks[k][i].to(dtype) if k in precision_blocks else precisions[k]
            for k in used
        }
        if work is None or len(work.mean) != len(output_blocks[0][i]):
            a, b, c = (torch.empty_like(mean[used[0]]) for _ in range(3))
            work = Workspace(a, b, c, vanishing)
        for weights, order, blocks in zip(weightings, orders, output_blocks):
            state = None
            for k in order:
                last = k == order[-1] and blocks[i].dtype == dtype
                into = blocks[i] if last else work.mean
                state = accumulate(state, weights[k], mean[k], precision[k], work, into)
            assert state is not None  # some weight is not zero: they add up to one
            merged = solve(state)
            if merged is not blocks[i]:
                blocks[i].copy_(merged)


def _order(weights: Sequence[float]) -> list[int]:
    """The terms that count, by falling weight."""
    least = _NEGLIGIBLE * max(abs(weight) for weight in weights)
    kept = (k for k, weight in enumerate(weights) if abs(weight) > least)
    return sorted(kept, key=lambda k: -weights[k])


def _split(tensor: Tensor, block: int) -> Sequence[Tensor]:
    """Blocks of the tensor, flattened: views if it is contiguous."""
    flat = tensor.detach().reshape(-1)
    return (flat,) if len(flat) <= block else torch.split(flat, block)


def _as_tensor(value: Precision, like: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else like.new_tensor(value)
