"""What the coupled families solve with, in fp64."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

_logger = logging.getLogger(__name__)

_TOLERANCE = 1e-14
"""Relative residual at which conjugate gradients stop."""
_MAX_STEPS = 1000


def flatten(tensors: Mapping[str, Tensor], names: Iterable[str]) -> Tensor:
    """One fp64 vector of the named tensors in the order of the names."""
    return torch.cat([tensors[name].detach().double().reshape(-1) for name in names])


def unflatten(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `flatten`, in the vector's dtype."""
    pieces = vector.split_with_sizes([tensor.numel() for tensor in like.values()])
    return {name: piece.view(like[name].shape) for name, piece in zip(like, pieces)}


def matrix_shape(tensor: Tensor) -> tuple[int, int]:
    """Rows and columns of a tensor as a matrix: its first dimension by all others."""
    rows = tensor.shape[0] if tensor.ndim else 1
    return rows, tensor.numel() // rows if rows else 0


def cholesky(matrix: Tensor) -> Tensor:
    """The lower factor; ValueError if the matrix is not positive definite."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    if info:
        raise ValueError(
            "the merged precision is not positive definite: add the prior's precision (damping) "
            "to every posterior, and check that the matrices are symmetric"
        )
    return factor  # type: ignore[no-any-return]


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor], target: Tensor, precondition: Callable[[Tensor], Tensor]
) -> Tensor:
    """Solve apply(x) = target for a symmetric positive definite linear map."""
    length = float(target.norm())
    if length == 0:
        return target
    x = torch.zeros_like(target)
    residual = target / length
    direction = z = precondition(residual)
    product = float((residual * z).sum())
    best, size = x, 1.0
    for _ in range(_MAX_STEPS):
        if size <= _TOLERANCE:
            return best * length
        image = apply(direction)
        curvature = float((direction * image).sum())
        if not curvature > 0:
            raise ValueError("the merged precision is not positive definite: add damping")
        step = product / curvature
        x = x + step * direction
        residual = residual - step * image
        if (norm := float(residual.norm())) < size:
            best, size = x, norm
        z = precondition(residual)
        previous, product = product, float((residual * z).sum())
        direction = z + product / previous * direction
    if size > 1e-6:
        _logger.warning(
            "conjugate gradients stopped at a relative residual of %.1e; more damping helps", size
        )
    return best * length
