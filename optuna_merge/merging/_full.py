"""Full precision matrices: one dense solve, in fp64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from optuna_merge.merging._terms import Gaussian, elementwise, flatten, unflatten
from optuna_merge.posteriors import FullGaussian


@dataclass
class Dense:
    """Sums over the terms so far, in fp64 and relative to `centre`.

    Attributes:
        centre: The tensors that means are measured from.
        precision: sum_t a_t S_t, of shape (P, P).
        moment: sum_t a_t S_t (m_t - centre), of shape (P,).
    """

    centre: Mapping[str, Tensor]
    precision: Tensor
    moment: Tensor


def accumulate(
    state: Dense | None, weight: float, term: Gaussian, centre: Mapping[str, Tensor]
) -> Dense:
    """Add a full or elementwise Gaussian."""
    shift = flatten(term.mean, centre) - flatten(centre, centre)
    if state is None:
        state = Dense(centre, shift.new_zeros(len(shift), len(shift)), torch.zeros_like(shift))
    if isinstance(term, FullGaussian):
        matrix = aligned(term, centre)
        state.precision.add_(matrix, alpha=weight)
        state.moment.add_(matrix @ shift, alpha=weight)
    else:
        diagonal = flatten({name: elementwise(term, name) for name in centre}, centre)
        state.precision.diagonal().add_(diagonal, alpha=weight)
        state.moment.add_(diagonal * shift, alpha=weight)
    return state


def solve(state: Dense) -> dict[str, Tensor]:
    """centre + precision^-1 moment.

    Raises:
        ValueError: the merged precision is not positive definite.
    """
    shift = torch.cholesky_solve(state.moment[:, None], cholesky(state.precision))[:, 0]
    return unflatten(flatten(state.centre, state.centre) + shift, state.centre)


def log_density(term: Gaussian, point: Mapping[str, Tensor]) -> float:
    """log N(point), less the constant -P/2 log 2 pi."""
    assert isinstance(term, FullGaussian)
    matrix = aligned(term, point)
    shift = flatten(point, point) - flatten(term.mean, point)
    log_determinant = 2 * cholesky(matrix).diagonal().log().sum()
    return float(log_determinant - shift @ matrix @ shift) / 2


def cholesky(matrix: Tensor) -> Tensor:
    """The lower factor.

    Raises:
        ValueError: the matrix is not positive definite.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    if info:
        raise ValueError(
            "the merged precision is not positive definite: add the prior's precision (damping) "
            "to every posterior, and check that the matrices are symmetric"
        )
    return factor  # type: ignore[no-any-return]


def aligned(term: FullGaussian, like: Mapping[str, Tensor]) -> Tensor:
    """The precision in fp64, its rows and columns in the order of the names of `like`."""
    precision = term.precision.double()
    if list(term.mean) == list(like):
        return precision
    places = torch.arange(len(precision), device=precision.device)
    own = unflatten(places.double(), term.mean)
    order = flatten(own, like).long()
    return precision[order][:, order]
