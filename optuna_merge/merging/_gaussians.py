"""Merges of Gaussians: elementwise ones by the kernels, others by their family's own sums."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from optuna_merge.merging._elementwise import Item, merge_items
from optuna_merge.posteriors import Coupled, Gaussian

_BATCH = 1 << 24
"""Elements merged at once: some families write precisions out, which are let go then."""


def empty_like(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Uninitialised contiguous tensors."""
    return {
        name: torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def merge_gaussians(
    terms: Sequence[Gaussian], weights: Sequence[float], *, vanishing: bool = True
) -> dict[str, Tensor]:
    """Merged means of checked terms of one family."""
    family = next((type(term) for term in terms if isinstance(term, Coupled)), None)
    if family is not None:
        return _merge_coupled(family, terms, weights)
    merged = empty_like(terms[0].mean)
    merge_elementwise(merged, terms, weights, vanishing=vanishing)
    return merged


def merge_elementwise(
    outputs: Mapping[str, Tensor],
    terms: Sequence[Gaussian],
    weights: Sequence[float],
    *,
    vanishing: bool = True,
) -> None:
    """Write the named tensors of elementwise terms, merged, to the outputs."""
    terms = [term for term, weight in zip(terms, weights) if weight]
    weights = [weight for weight in weights if weight]
    for names in _batches(outputs):
        items = [
            Item(
                outputs[name],
                [term.mean[name] for term in terms],
                [precision_of(term, name) for term in terms],
            )
            for name in names
        ]
        merge_items(items, weights, vanishing=vanishing)


def precision_of(term: Gaussian, name: str) -> Tensor | float:
    """The precision of one tensor of an elementwise term."""
    precision = term.elementwise(name)
    assert precision is not None
    return precision


def _batches(tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Names of tensors of at most `_BATCH` elements, or of one tensor."""
    names: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if names and size + tensor.numel() > _BATCH:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor.numel()
    yield names


def _merge_coupled(
    family: type[Coupled], terms: Sequence[Gaussian], weights: Sequence[float]
) -> dict[str, Tensor]:
    used = [(weight, term) for weight, term in zip(weights, terms) if weight]
    like = terms[0].mean
    centre = {name: used[0][1].mean[name] for name in like}
    if len(used) == 1:
        return {name: mean.detach().clone() for name, mean in centre.items()}
    sums = family.sums(centre)
    for weight, term in used:
        sums.add(weight, term)
    return {name: mean.to(like[name].dtype) for name, mean in sums.solve().items()}
