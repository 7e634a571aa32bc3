"""The whole precision matrix, for toys and last layers: one dense solve, in fp64."""

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
from optuna_merge.posteriors._gaussian import Coupled, Gaussian, Part, elementwise
from optuna_merge.posteriors._linear_algebra import cholesky, flatten, unflatten

FULL_LIMIT = 8192
"""Parameters above which the full family is refused: one matrix then takes 512 MiB in fp64."""


@dataclass(frozen=True, eq=False)
class FullGaussian(Coupled):
    """N(mean, precision^-1).

    Args:
        mean: Tensors by name, P numbers in all.
        precision: One symmetric matrix P x P over the tensors flattened in the mean's order: the
            averaged loss's Hessian plus the prior's precision, once.
    """

    precision: Tensor

    def parts(self) -> Iterator[Part]:
        yield from super().parts()
        total = sum(mean.numel() for mean in self.mean.values())
        yield Part("precision", "", self.precision, shape=(total, total))

    def elementwise(self, name: str) -> None:
        return None

    def trace(self) -> float:
        return float(self.precision.double().diagonal().sum())

    def damped(self, delta: float) -> Self:
        eye = torch.eye(len(self.precision)).to(self.precision)
        return replace(self, precision=self.precision + delta * eye)

    @staticmethod
    def sums(centre: Mapping[str, Tensor]) -> FullSums:
        return FullSums(centre)

    def log_density(self, point: Mapping[str, Tensor]) -> float:
        matrix = self.matrix(point)
        shift = flatten(point, point) - flatten(self.mean, point)
        log_determinant = 2 * cholesky(matrix).diagonal().log().sum()
        return float(log_determinant - shift @ matrix @ shift) / 2

    def matrix(self, like: Mapping[str, Tensor]) -> Tensor:
        """The precision in fp64, its rows and columns in the order of the names of `like`."""
        precision = self.precision.double()
        if list(self.mean) == list(like):
            return precision
        places = torch.arange(len(precision), device=precision.device)
        order = flatten(unflatten(places.double(), self.mean), like).long()
        return precision[order][:, order]


class FullSums:
    """Sums in fp64: precision sum_t a_t S_t (P, P), moment sum_t a_t S_t (m_t - centre) (P,)."""

    def __init__(self, centre: Mapping[str, Tensor]) -> None:
        self.centre = centre
        self._flat = flatten(centre, centre)
        self.moment = torch.zeros_like(self._flat)
        self.precision = self.moment.new_zeros(len(self.moment), len(self.moment))

    def add(self, weight: float, term: Gaussian) -> None:
        """Add a full or elementwise Gaussian."""
        shift = flatten(term.mean, self.centre) - self._flat
        if isinstance(term, FullGaussian):
            matrix = term.matrix(self.centre)
            self.precision.add_(matrix, alpha=weight)
            self.moment.add_(matrix @ shift, alpha=weight)
        else:
            diagonal = flatten(
                {name: elementwise(term, name) for name in self.centre}, self.centre
            )
            self.precision.diagonal().add_(diagonal, alpha=weight)
            self.moment.add_(diagonal * shift, alpha=weight)

    def solve(self) -> dict[str, Tensor]:
        """centre + precision^-1 moment."""
        shift = torch.cholesky_solve(self.moment[:, None], cholesky(self.precision))[:, 0]
        return unflatten(self._flat + shift, self.centre)


def full_fisher(
    predict: Predict,
    params: Mapping[str, Tensor],
    batches: Iterable[Batch],
    *,
    chunk_size: int = 32,
    **labelling: Unpack[Labelling],
) -> Tensor:
    """The Fisher matrix of all P parameters: the data part of a `FullGaussian`'s precision.

    The mean of g g' over examples with gradients g, of which `squared_gradients` is the diagonal.

    Arguments and errors are those of `squared_gradients`.

    Returns:
        A matrix P x P, symmetric up to rounding, over the parameters flattened in the order of
        `params`, in fp32 (fp64 for fp64), to which the prior's precision is still to be added.
    """
    reference = next(iter(params.values()))
    size = sum(tensor.numel() for tensor in params.values())
    total = reference.new_zeros(size, size, dtype=wide(reference))
    count = 0
    for rows in gradient_rows(predict, params, batches, chunk_size=chunk_size, **labelling):
        total.addmm_(rows.T, rows)
        count += len(rows)
    return total.div_(count)


def _estimate(evidence: Evidence) -> FullGaussian:
    return FullGaussian(evidence.mean, evidence.by_gradients(full_fisher))


def _check_size(parameters: int) -> None:
    if parameters > FULL_LIMIT:
        raise ValueError(
            f"family='full' keeps a matrix of {parameters} x {parameters} numbers per task, "
            f"{8 * parameters**2 / 2**30:.1f} GiB each in fp64, for the {parameters} merged "
            f"parameters; at most {FULL_LIMIT} are allowed: merge fewer (trainable="
            f"LastLayers(n) or Matching(regex)), or use family='low_rank' or 'kronecker'"
        )


FULL = Family(
    "full",
    f"one matrix of all merged parameters, of which there may be {FULL_LIMIT}",
    FullGaussian,
    Curvature("full", _estimate),
    check_size=_check_size,
)
