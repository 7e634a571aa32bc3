"""What the families share: terms of a merge seen as vectors and elementwise precisions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from optuna_merge.posteriors import DiagonalGaussian, IsotropicGaussian
from optuna_merge.posteriors._mixture import Gaussian

__all__ = ["Gaussian", "elementwise", "flatten", "scalar_or_tensor", "unflatten"]


def scalar_or_tensor(term: Gaussian, name: str) -> Tensor | float:
    """The precision of one tensor of an elementwise family, as it is stored."""
    if isinstance(term, IsotropicGaussian):
        return term.scalar(name)
    assert isinstance(term, DiagonalGaussian)
    return term.precision[name]


def elementwise(term: Gaussian, name: str) -> Tensor:
    """The same in fp64, of the mean's shape."""
    value, mean = scalar_or_tensor(term, name), term.mean[name]
    if isinstance(value, Tensor):
        return value.double()
    return torch.full(mean.shape, value, dtype=torch.float64, device=mean.device)


def flatten(tensors: Mapping[str, Tensor], names: Iterable[str]) -> Tensor:
    """One fp64 vector of the named tensors in the order of the names."""
    return torch.cat([tensors[name].detach().double().reshape(-1) for name in names])


def unflatten(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `flatten`, in the vector's dtype."""
    pieces = vector.split_with_sizes([tensor.numel() for tensor in like.values()])
    return {name: piece.view(like[name].shape) for name, piece in zip(like, pieces)}
