"""One Kronecker product per layer: K-FAC, and RegMean as its special case.

The merged mean X of a layer solves

    sum_t a_t G_t (X - M_t) A_t + (elementwise terms) = 0.

If all G_t (or all A_t) are the identity this is one dense solve: RegMean with weights. Otherwise
it is solved by conjugate gradients, preconditioned by the Kronecker product of the summed
factors, which is exact for a single task. All in fp64, one matrix at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import torch
from torch import Tensor

from optuna_merge.posteriors._family import Curvature, Evidence, Family
from optuna_merge.posteriors._gaussian import Coupled, Gaussian, Part, double_sum, elementwise
from optuna_merge.posteriors._kronecker_fisher import kronecker_fisher
from optuna_merge.posteriors._linear_algebra import cholesky, conjugate_gradients, matrix_shape

Factors = tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True, eq=False)
class KroneckerGaussian(Coupled):
    """For each matrix W (out x in) of the mean, the precision X -> G X A + damping X.

    With G the identity this is RegMean with weights (arXiv 2212.09849), merged in closed form;
    with both factors it is K-FAC (arXiv 1503.05671).

    Args:
        mean: Tensors by name. A tensor of more than two dimensions counts as a matrix of its first
            dimension by all others, one of a single dimension as a column.
        factors: For each name of a matrix the pair (A, G): A symmetric, in x in, the mean of
            a a' over a layer's inputs; G symmetric, out x out, the mean of g g' over the gradients
            at its outputs; None stands for the identity.
        precision: Elementwise precisions, the prior included, of the tensors without factors;
            those that are in neither have the precision `damping`.
        damping: The prior's precision, included once, on the scale of the averaged loss.
    """

    coupling = "tensor"
    partial = frozenset({"factors", "precision"})

    factors: dict[str, Factors]
    precision: dict[str, Tensor] = field(default_factory=dict)
    damping: float = 0.0

    def __post_init__(self) -> None:
        if both := sorted(self.precision.keys() & self.factors.keys()):
            raise ValueError(
                f"{both[0]!r} has factors and an elementwise precision; the prior's precision "
                f"belongs into damping"
            )

    def parts(self) -> Iterator[Part]:
        yield from super().parts()
        yield Part("damping", "", self.damping, shape=(), nonnegative=True)
        yield from self.precision_parts("precision", self.precision)
        for name, pair in self.factors.items():
            rows, columns = matrix_shape(self.mean[name])
            for role, factor, size in zip("AG", pair, (columns, rows)):
                if factor is not None:
                    yield Part(f"factor {role} of", name, factor, shape=(size, size))

    def elementwise(self, name: str) -> Tensor | float:
        """The precision beside the factors."""
        return self.precision[name] if name in self.precision else float(self.damping)

    def trace(self) -> float:
        apart = sum(self.mean[name].numel() for name in self.precision)
        whole = sum(tensor.numel() for tensor in self.mean.values())
        total = double_sum(self.precision) + self.damping * (whole - apart)
        for name, pair in self.factors.items():
            tensor = self.mean[name]
            sizes = (tensor.numel() // tensor.shape[0], tensor.shape[0])
            a, g = (
                size if factor is None else float(factor.double().diagonal().sum())
                for size, factor in zip(sizes, pair)
            )
            total += a * g
        return total

    def damped(self, delta: float) -> Self:
        """The same with the prior's precision `delta` added, and each of two factors damped, too.

            (A + pi sqrt(delta) I) x (G + sqrt(delta) / pi I) + delta I,

        with pi^2 the ratio of the factors' mean eigenvalues (K-FAC, arXiv 1503.05671, section
        6.3). Directions in which one factor is nearly zero are then held by the other: without
        this, small dampings give merges far from all tasks.
        """
        return replace(
            self,
            factors={name: _damped_pair(pair, delta) for name, pair in self.factors.items()},
            precision={name: value + delta for name, value in self.precision.items()},
            damping=self.damping + delta,
        )

    @staticmethod
    def sums(centre: Mapping[str, Tensor]) -> KroneckerSums:
        return KroneckerSums(centre)

    def log_density(self, point: Mapping[str, Tensor]) -> float:
        total = 0.0
        for name, tensor in point.items():
            shift = _matrix(tensor) - _matrix(self.mean[name])
            diagonal = _matrix(elementwise(self, name))
            image = diagonal * shift
            if name in self.factors:
                a, g = (None if f is None else f.double() for f in self.factors[name])
                image += _product(g, shift, a)
                diagonal = diagonal + torch.outer(
                    _eigenvalues(g, diagonal[:, 0]), _eigenvalues(a, diagonal[0])
                )
            total += float(diagonal.log().sum() - (shift * image).sum()) / 2
        return total


def _damped_pair(pair: Factors, delta: float) -> Factors:
    """Both factors with their shares; a single one (RegMean) is damped exactly as it is."""
    if pair[0] is None or pair[1] is None:
        return pair
    means = [float(factor.double().diagonal().mean()) for factor in pair if factor is not None]
    ratio = math.sqrt(means[0] / means[1]) if min(means) > 0 else 1.0
    shares = (ratio * math.sqrt(delta), math.sqrt(delta) / ratio)
    a, g = (
        factor + share * torch.eye(len(factor)).to(factor)
        for factor, share in zip(pair, shares)
        if factor is not None
    )
    return a, g


@dataclass
class Layer:
    """Sums over the terms of one matrix (out, in), in fp64 and relative to the centre.

    `moment` is sum_t a_t S_t (m_t - centre). `products` are the weight, G and A of each term; None
    stands for the identity.
    """

    elementwise: Tensor
    moment: Tensor
    products: list[tuple[float, Tensor | None, Tensor | None]] = field(default_factory=list)


class KroneckerSums:
    """Sums of all layers, by name, and the tensors that means are measured from."""

    def __init__(self, centre: Mapping[str, Tensor]) -> None:
        self.centre = centre
        zeros = {name: torch.zeros_like(_matrix(tensor)) for name, tensor in centre.items()}
        self.layers = {name: Layer(zero, zero.clone()) for name, zero in zeros.items()}

    def add(self, weight: float, term: Gaussian) -> None:
        """Add a Kronecker-factored or elementwise Gaussian."""
        for name, layer in self.layers.items():
            shift = _matrix(term.mean[name]) - _matrix(self.centre[name])
            diagonal = _matrix(elementwise(term, name))
            layer.elementwise.add_(diagonal, alpha=weight)
            layer.moment.add_(diagonal * shift, alpha=weight)
            if isinstance(term, KroneckerGaussian) and name in term.factors:
                a, g = (None if f is None else f.double() for f in term.factors[name])
                layer.products.append((weight, g, a))
                layer.moment.add_(_product(g, shift, a), alpha=weight)

    def solve(self) -> dict[str, Tensor]:
        """The merged mean of every layer."""
        merged = {}
        for name, layer in self.layers.items():
            try:
                shift = _solve_layer(layer)
            except ValueError as error:
                raise ValueError(f"tensor {name!r}: {error}") from error
            centre = self.centre[name]
            merged[name] = (_matrix(centre) + shift).view(centre.shape)
        return merged


def _solve_layer(layer: Layer) -> Tensor:
    left = [g for _, g, _ in layer.products if g is not None]
    right = [a for _, _, a in layer.products if a is not None]
    uniform = bool((layer.elementwise == layer.elementwise.view(-1)[:1]).all())
    if not left and not right:
        plain = sum(weight for weight, _, _ in layer.products)
        precision = layer.elementwise + plain
        if bool((precision <= 0).any()):
            raise ValueError("the merged precision is not positive everywhere: add damping")
        return layer.moment / precision
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


def _eigenvalues(factor: Tensor | None, like: Tensor) -> Tensor:
    values: Tensor = torch.ones_like(like) if factor is None else torch.linalg.eigvalsh(factor)
    return values


def _matrix(tensor: Tensor) -> Tensor:
    """A view or copy in fp64, of the shape that factors act on."""
    return tensor.detach().double().reshape(matrix_shape(tensor))


def _estimate(evidence: Evidence) -> KroneckerGaussian:
    factors, diagonals = kronecker_fisher(
        evidence.model, evidence.batches, predict=evidence.call, **evidence.labelling
    )
    mean = evidence.mean
    return KroneckerGaussian(
        mean,
        {name: factors[name] for name in mean if name in factors},
        {name: diagonals[name] for name in mean if name in diagonals},
    )


KRONECKER = Family(
    "kronecker",
    "K-FAC, a pair of factors per layer",
    KroneckerGaussian,
    Curvature("kronecker", _estimate),
)
