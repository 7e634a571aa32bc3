"""Kronecker-factored precisions, one matrix at a time, in fp64.

The merged mean X of a layer solves

    sum_t a_t G_t (X - M_t) A_t + (elementwise terms) = 0.

If all G_t (or all A_t) are the identity this is one dense solve: RegMean with weights. Otherwise
it is solved by conjugate gradients, preconditioned by the Kronecker product of the summed
factors, which is exact for a single task.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from optuna_merge.merging._full import cholesky
from optuna_merge.merging._terms import Gaussian, elementwise
from optuna_merge.posteriors import KroneckerGaussian
from optuna_merge.posteriors._kronecker import matrix_shape

_logger = logging.getLogger(__name__)

_TOLERANCE = 1e-14
"""Relative residual at which conjugate gradients stop."""
_MAX_STEPS = 1000


@dataclass
class Layer:
    """Sums over the terms so far of one matrix, in fp64 and relative to the centre.

    Attributes:
        products: Weight, G and A of each term; None stands for the identity.
        elementwise: The sum of elementwise precisions, (out, in).
        moment: sum_t a_t S_t (m_t - centre), (out, in).
    """

    elementwise: Tensor
    moment: Tensor
    products: list[tuple[float, Tensor | None, Tensor | None]] = field(default_factory=list)


@dataclass
class Kronecker:
    """Sums of all layers, by name, and the tensors that means are measured from."""

    centre: Mapping[str, Tensor]
    layers: dict[str, Layer]


def accumulate(
    state: Kronecker | None, weight: float, term: Gaussian, centre: Mapping[str, Tensor]
) -> Kronecker:
    """Add a Kronecker-factored or elementwise Gaussian."""
    if state is None:
        zeros = {name: torch.zeros_like(_matrix(tensor)) for name, tensor in centre.items()}
        state = Kronecker(centre, {n: Layer(zero, zero.clone()) for n, zero in zeros.items()})
    for name, layer in state.layers.items():
        shift = _matrix(term.mean[name]) - _matrix(centre[name])
        diagonal = _diagonal(term, name)
        layer.elementwise.add_(diagonal, alpha=weight)
        layer.moment.add_(diagonal * shift, alpha=weight)
        if isinstance(term, KroneckerGaussian) and name in term.factors:
            a, g = (None if f is None else f.double() for f in term.factors[name])
            layer.products.append((weight, g, a))
            layer.moment.add_(_product(g, shift, a), alpha=weight)
    return state


def solve(state: Kronecker) -> dict[str, Tensor]:
    """The merged mean of every layer.

    Raises:
        ValueError: a merged precision is not positive definite; the message names the tensor.
    """
    merged = {}
    for name, layer in state.layers.items():
        try:
            shift = _solve_layer(layer)
        except ValueError as error:
            raise ValueError(f"tensor {name!r}: {error}") from error
        centre = state.centre[name]
        merged[name] = (_matrix(centre) + shift).view(centre.shape)
    return merged


def log_density(term: Gaussian, point: Mapping[str, Tensor]) -> float:
    """log N(point), less the constant -P/2 log 2 pi."""
    assert isinstance(term, KroneckerGaussian)
    total = 0.0
    for name, tensor in point.items():
        shift = _matrix(tensor) - _matrix(term.mean[name])
        diagonal = _diagonal(term, name)
        image = diagonal * shift
        if name in term.factors:
            a, g = (None if f is None else f.double() for f in term.factors[name])
            image += _product(g, shift, a)
            diagonal = diagonal + torch.outer(
                _eigenvalues(g, diagonal[:, 0]), _eigenvalues(a, diagonal[0])
            )
        total += float(diagonal.log().sum() - (shift * image).sum()) / 2
    return total


def _solve_layer(layer: Layer) -> Tensor:
    left = [g for _, g, _ in layer.products if g is not None]
    right = [a for _, _, a in layer.products if a is not None]
    uniform = bool((layer.elementwise == layer.elementwise.view(-1)[:1]).all())
    if not left and not right:
        plain = sum(weight for weight, _, _ in layer.products)
        return _divide(layer.moment, layer.elementwise + plain)
    if uniform and not left:
        transposed: Tensor = torch.cholesky_solve(layer.moment.T, cholesky(_summed(layer, side=2)))
        return transposed.T
    if uniform and not right:
        return torch.cholesky_solve(layer.moment, cholesky(_summed(layer, side=1)))

    def apply(x: Tensor) -> Tensor:
        image = layer.elementwise * x
        for weight, g, a in layer.products:
            image.add_(_product(g, x, a), alpha=weight)
        return image

    return conjugate_gradients(apply, layer.moment, _preconditioner(layer))


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor], target: Tensor, precondition: Callable[[Tensor], Tensor]
) -> Tensor:
    """Solve apply(x) = target for a symmetric positive definite linear map.

    Raises:
        ValueError: the map is seen not to be positive definite.
    """
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


def _preconditioner(layer: Layer) -> Callable[[Tensor], Tensor]:
    """The inverse of (sum a G) x (sum a A) / sum a + mean elementwise precision."""
    g_values, g_vectors = torch.linalg.eigh(_summed(layer, side=1, elementwise=False))
    a_values, a_vectors = torch.linalg.eigh(_summed(layer, side=2, elementwise=False))
    total = sum(weight for weight, _, _ in layer.products)
    values = torch.outer(g_values.clamp(min=0), a_values.clamp(min=0)) / total
    values += layer.elementwise.mean()
    largest = float(values.max())
    if largest <= 0:
        raise ValueError("the merged precision is not positive definite: add damping")
    values.clamp_(min=largest * 1e-15)

    def precondition(x: Tensor) -> Tensor:
        scaled: Tensor = g_vectors.T @ x @ a_vectors / values
        return g_vectors @ scaled @ a_vectors.T  # type: ignore[no-any-return]

    return precondition


def _summed(layer: Layer, *, side: Literal[1, 2], elementwise: bool = True) -> Tensor:
    """sum_t a_t F_t of the factors on one side, with the uniform elementwise precision."""
    size = layer.moment.shape[side - 1]
    identity = torch.eye(size, dtype=torch.float64, device=layer.moment.device)
    total = identity * (layer.elementwise.view(-1)[0] if elementwise else 0.0)
    for product in layer.products:
        factor = product[side]
        total.add_(identity if factor is None else factor, alpha=product[0])
    return total


def _product(g: Tensor | None, x: Tensor, a: Tensor | None) -> Tensor:
    x = x if g is None else g @ x
    return x if a is None else x @ a


def _divide(moment: Tensor, precision: Tensor) -> Tensor:
    if bool((precision <= 0).any()):
        raise ValueError("the merged precision is not positive everywhere: add damping")
    return moment / precision


def _eigenvalues(factor: Tensor | None, like: Tensor) -> Tensor:
    values: Tensor = torch.ones_like(like) if factor is None else torch.linalg.eigvalsh(factor)
    return values


def _diagonal(term: Gaussian, name: str) -> Tensor:
    """The elementwise part of a term's precision, as a matrix."""
    if not isinstance(term, KroneckerGaussian):
        return _matrix(elementwise(term, name))
    if name in term.precision:
        return _matrix(term.precision[name])
    return torch.full_like(_matrix(term.mean[name]), float(term.damping))


def _matrix(tensor: Tensor) -> Tensor:
    """A view or copy in fp64, of the shape that factors act on."""
    return tensor.detach().double().reshape(matrix_shape(tensor))
