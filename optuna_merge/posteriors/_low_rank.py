"""A diagonal plus a low-rank part: the strongest directions of curvature, kept as they are.

Merged by Woodbury's identity. With D = sum_t a_t d_t and V = [sqrt(a_1) U_1, sqrt(a_2) U_2, ...],

    (D + V V')^-1 g = D^-1 g - D^-1 V (I + V' D^-1 V)^-1 V' D^-1 g,

whose only dense system has the size sum_t r_t. Sums are in fp64, one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self, Unpack

import torch
from torch import Tensor

from optuna_merge.posteriors._example_gradients import (
    Batch,
    Labelling,
    Predict,
    gradient_rows,
    wide,
)
from optuna_merge.posteriors._family import Curvature, Evidence, Family
from optuna_merge.posteriors._gaussian import Coupled, Gaussian, Part, double_sum, elementwise
from optuna_merge.posteriors._linear_algebra import cholesky, unflatten


@dataclass(frozen=True, eq=False)
class LowRankGaussian(Coupled):
    """N(mean, (diag(d) + U U')^-1), with U of shape P x r over all P parameters.

    Args:
        mean: Tensors by name.
        diagonal: Tensors of the same names and shapes, positive; they include the prior's
            precision once.
        factors: The columns of U, cut along the tensors: for each name a tensor of the mean's
            shape with one more dimension, of length r, at the end. The data part of the averaged
            loss.
    """

    diagonal: dict[str, Tensor]
    factors: dict[str, Tensor]

    def __post_init__(self) -> None:
        if not isinstance(self.diagonal, dict):
            raise TypeError(
                f"diagonal must be a dict of tensors, got {type(self.diagonal).__name__}"
            )

    def rows(self) -> dict[str, Tensor]:
        """For each name the rows of U that belong to it, (elements, r)."""
        return {n: self.factors[n].reshape(mean.numel(), -1) for n, mean in self.mean.items()}

    def parts(self) -> Iterator[Part]:
        yield from super().parts()
        yield from self.precision_parts("diagonal", self.diagonal)
        rank = next(iter(self.factors.values())).shape[-1:]
        for name, factor in self.factors.items():
            yield Part("factors", name, factor, shape=(*self.mean[name].shape, *rank))

    def elementwise(self, name: str) -> Tensor:
        return self.diagonal[name]

    def trace(self) -> float:
        squares = sum(float(u.double().square().sum()) for u in self.rows().values())
        return double_sum(self.diagonal) + squares

    def damped(self, delta: float) -> Self:
        return replace(self, diagonal={name: self.diagonal[name] + delta for name in self.mean})

    @staticmethod
    def sums(centre: Mapping[str, Tensor]) -> LowRankSums:
        return LowRankSums(centre)

    def log_density(self, point: Mapping[str, Tensor]) -> float:
        factors = {name: factor.double() for name, factor in self.rows().items()}
        diagonal = {name: _column(self.diagonal[name]) for name in point}
        shift = {name: _column(point[name]) - _column(self.mean[name]) for name in point}
        quadratic = sum(float((diagonal[name] * shift[name] ** 2).sum()) for name in point)
        projected = _project(factors, shift)
        inner = cholesky(_inner(factors, diagonal))
        log_determinant = sum(float(diagonal[name].log().sum()) for name in point)
        log_determinant += 2 * float(inner.diagonal().log().sum())
        return (log_determinant - quadratic - float((projected**2).sum())) / 2


class LowRankSums:
    """Sums of a_t d_t, of moments a_t S_t (m_t - centre), and the blocks sqrt(a_t) U_t of V."""

    def __init__(self, centre: Mapping[str, Tensor]) -> None:
        self.centre = centre
        self.diagonal = {name: _column(tensor).zero_() for name, tensor in centre.items()}
        self.moment = {name: zero.clone() for name, zero in self.diagonal.items()}
        self.factors: dict[str, list[Tensor]] = {}

    def add(self, weight: float, term: Gaussian) -> None:
        """Add a low-rank or elementwise Gaussian; the former with a positive weight."""
        shift = {
            name: _column(term.mean[name]) - _column(self.centre[name]) for name in self.centre
        }
        for name in self.centre:
            diagonal = _column(elementwise(term, name))
            self.diagonal[name].add_(diagonal, alpha=weight)
            self.moment[name].add_(diagonal * shift[name], alpha=weight)
        if isinstance(term, LowRankGaussian):
            rows = {name: factor.double() for name, factor in term.rows().items()}
            projected = _project(rows, shift)
            for name in self.centre:
                self.moment[name].add_(rows[name] @ projected, alpha=weight)
                self.factors.setdefault(name, []).append(weight**0.5 * rows[name])

    def solve(self) -> dict[str, Tensor]:
        """centre + (D + V V')^-1 moment."""
        for name, diagonal in self.diagonal.items():
            if bool((diagonal <= 0).any()):
                raise ValueError(
                    f"the merged diagonal of {name!r} is not positive everywhere; low-rank "
                    f"posteriors need the prior's precision (damping) in their diagonals"
                )
        if not self.factors:
            shift = {name: self.moment[name] / d for name, d in self.diagonal.items()}
        else:
            factors = {name: torch.cat(blocks, 1) for name, blocks in self.factors.items()}
            root = cholesky(_inner(factors, self.diagonal))
            shift = self._woodbury(factors, root, self.moment)
            # The identity cancels large terms; a second solve mends what rounding left.
            projected = _project(factors, shift)
            left = {
                name: self.moment[name] - d * shift[name] - factors[name] @ projected
                for name, d in self.diagonal.items()
            }
            for name, correction in self._woodbury(factors, root, left).items():
                shift[name] += correction
        return {
            name: (_column(tensor) + shift[name]).view(tensor.shape)
            for name, tensor in self.centre.items()
        }

    def _woodbury(
        self, factors: Mapping[str, Tensor], root: Tensor, target: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """(D + V V')^-1 target, with the Cholesky factor of I + V' D^-1 V."""
        scaled = {name: target[name] / d for name, d in self.diagonal.items()}
        core = torch.cholesky_solve(_project(factors, scaled), root)
        for name, d in self.diagonal.items():
            scaled[name] -= factors[name] @ core / d
        return scaled


def _project(factors: Mapping[str, Tensor], columns: Mapping[str, Tensor]) -> Tensor:
    """V' x."""
    return torch.stack([v.T @ columns[name] for name, v in factors.items()]).sum(0)


def _inner(factors: Mapping[str, Tensor], diagonal: Mapping[str, Tensor]) -> Tensor:
    """I + V' D^-1 V."""
    gram = torch.stack([v.T @ (v / diagonal[name]) for name, v in factors.items()]).sum(0)
    return gram + torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


def _column(tensor: Tensor) -> Tensor:
    """A copy in fp64, of shape (elements, 1)."""
    return tensor.detach().to(torch.float64, copy=True).reshape(-1, 1)


def low_rank_fisher(
    predict: Predict,
    params: Mapping[str, Tensor],
    batches: Iterable[Batch],
    *,
    rank: int,
    chunk_size: int = 32,
    **labelling: Unpack[Labelling],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Diagonal and factors of a `LowRankGaussian`: F close to diag(d) + U U', diagonals equal.

    A sketch of `rank` directions is held; each chunk of gradients is added to it and the sketch
    cut back to its leading singular directions. What is cut stays in the diagonal. With no more
    examples than `rank` it is exact.

    Arguments and errors are those of `squared_gradients`, but for

    Args:
        rank: Columns of U, at least 1.
        chunk_size: Memory is this plus `rank`, times the parameters.

    Returns:
        The diagonal d >= 0 of the data part, to which the prior's precision is still to be added,
        and U as tensors of the parameters' shapes with a last dimension of length `rank`.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}; expected at least 1")
    sizes = [tensor.numel() for tensor in params.values()]
    reference = next(iter(params.values()))
    sketch = reference.new_zeros(0, sum(sizes), dtype=wide(reference))
    squares = reference.new_zeros(sum(sizes), dtype=wide(reference))
    count = 0
    pending: list[Tensor] = []
    for rows in gradient_rows(predict, params, batches, chunk_size=chunk_size, **labelling):
        squares += rows.square().sum(0)
        count += len(rows)
        pending.append(rows)
        if sum(map(len, pending)) >= chunk_size:
            sketch = _cut(torch.cat([sketch, *pending]), rank)
            pending = []
    sketch = _cut(torch.cat([sketch, *pending]), rank) / count**0.5
    diagonal = (squares / count - sketch.square().sum(0)).clamp(min=0)
    padded = torch.cat([sketch, sketch.new_zeros(rank - len(sketch), sketch.shape[1])])
    directions = zip(params.items(), padded.split_with_sizes(sizes, 1))
    return unflatten(diagonal, params), {
        name: piece.T.reshape(*tensor.shape, rank) for (name, tensor), piece in directions
    }


def _cut(rows: Tensor, rank: int) -> Tensor:
    """At most `rank` orthogonal rows with nearly the same sum of outer products."""
    if len(rows) <= rank:
        return rows
    _, vectors = torch.linalg.eigh(rows.double() @ rows.double().T)
    leading: Tensor = vectors[:, -rank:].to(rows.dtype)
    return leading.T @ rows


def _estimate(evidence: Evidence, *, rank: int) -> LowRankGaussian:
    return LowRankGaussian(evidence.mean, *evidence.by_gradients(low_rank_fisher, rank=rank))


LOW_RANK = Family(
    "low_rank",
    "the diagonal and the `rank` strongest directions",
    LowRankGaussian,
    Curvature("low_rank", _estimate, reads=("rank",)),
)
