"""One merge interface: each family gives `accumulate` and `solve`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from optuna_merge.merging import _full, _kronecker, _low_rank
from optuna_merge.merging._elementwise import Item, merge_items
from optuna_merge.merging._memory import empty_like
from optuna_merge.merging._terms import Gaussian, scalar_or_tensor
from optuna_merge.posteriors import (
    DiagonalGaussian,
    FullGaussian,
    IsotropicGaussian,
    KroneckerGaussian,
    LowRankGaussian,
)

ELEMENTWISE = (IsotropicGaussian, DiagonalGaussian)


@dataclass(frozen=True)
class Coupled:
    """How a family whose coordinates are coupled is merged.

    Attributes:
        accumulate: (statistics or None, weight, term, centre) -> statistics.
        solve: Statistics -> merged means, in fp64.
        log_density: (term, point) -> log N(point) without its constant.
    """

    accumulate: Callable[[Any, float, Gaussian, Mapping[str, Tensor]], Any]
    solve: Callable[[Any], dict[str, Tensor]]
    log_density: Callable[[Gaussian, Mapping[str, Tensor]], float]


COUPLED: dict[type, Coupled] = {
    family: Coupled(module.accumulate, module.solve, module.log_density)
    for family, module in (
        (LowRankGaussian, _low_rank),
        (KroneckerGaussian, _kronecker),
        (FullGaussian, _full),
    )
}


def merge_gaussians(
    terms: Sequence[Gaussian],
    weightings: Sequence[Sequence[float]],
    *,
    vanishing: bool = True,
    out: Sequence[dict[str, Tensor]] | None = None,
) -> list[dict[str, Tensor]]:
    """Merged means for several weightings of terms that passed all checks.

    Args:
        terms: Of one family, elementwise ones among them; the prior is a term.
        weightings: For each merge one weight per term.
        vanishing: Whether some elementwise precision may be zero.
        out: Tensors by name for each merge, to be written to; None: new ones.
    """
    family = next((type(t) for t in terms if not isinstance(t, ELEMENTWISE)), None)
    if family is not None:
        merged = [_merge_coupled(COUPLED[family], terms, weights) for weights in weightings]
        return merged if out is None else copied(merged, out)
    results = [empty_like(terms[0].mean) for _ in weightings] if out is None else list(out)
    merge_elementwise(results, terms, weightings, vanishing=vanishing)
    return results


def merge_elementwise(
    outputs: Sequence[Mapping[str, Tensor]],
    terms: Sequence[Gaussian],
    weightings: Sequence[Sequence[float]],
    *,
    vanishing: bool = True,
) -> None:
    """Write the named tensors of elementwise terms, merged for each weighting, to the outputs."""
    used = [t for t in range(len(terms)) if any(weights[t] for weights in weightings)]
    terms = [terms[t] for t in used]
    weightings = [[weights[t] for t in used] for weights in weightings]
    items = [
        Item(
            [output[name] for output in outputs],
            [term.mean[name] for term in terms],
            [scalar_or_tensor(term, name) for term in terms],
        )
        for name in outputs[0]
    ]
    merge_items(items, weightings, vanishing=vanishing)


def copied(
    merged: Sequence[Mapping[str, Tensor]], out: Sequence[dict[str, Tensor]]
) -> list[dict[str, Tensor]]:
    """`out`, with the merged tensors copied into its own."""
    for tensors, targets in zip(merged, out):
        for name, tensor in tensors.items():
            targets[name].copy_(tensor)
    return list(out)


def _merge_coupled(
    family: Coupled, terms: Sequence[Gaussian], weights: Sequence[float]
) -> dict[str, Tensor]:
    used = [(weight, term) for weight, term in zip(weights, terms) if weight]
    like = terms[0].mean
    centre = {name: used[0][1].mean[name] for name in like}
    if len(used) == 1:
        return {name: mean.detach().clone() for name, mean in centre.items()}
    state = None
    for weight, term in used:
        state = family.accumulate(state, weight, term, centre)
    return {name: mean.to(like[name].dtype) for name, mean in family.solve(state).items()}
