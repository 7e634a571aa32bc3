"""Low rank plus diagonal, by Woodbury's identity.

With D = sum_t a_t d_t and V = [sqrt(a_1) U_1, sqrt(a_2) U_2, ...],

    (D + V V')^-1 g = D^-1 g - D^-1 V (I + V' D^-1 V)^-1 V' D^-1 g,

whose only dense system has the size sum_t r_t. Sums are in fp64, one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from optuna_merge.merging._full import cholesky
from optuna_merge.merging._terms import Gaussian, elementwise
from optuna_merge.posteriors import LowRankGaussian


@dataclass
class LowRank:
    """Sums over the terms so far, in fp64 and relative to `centre`, as columns.

    Attributes:
        centre: The tensors that means are measured from.
        diagonal: sum_t a_t d_t by name.
        moment: sum_t a_t S_t (m_t - centre) by name.
        factors: By name the blocks sqrt(a_t) U_t of V.
    """

    centre: Mapping[str, Tensor]
    diagonal: dict[str, Tensor]
    moment: dict[str, Tensor]
    factors: dict[str, list[Tensor]] = field(default_factory=dict)


def accumulate(
    state: LowRank | None, weight: float, term: Gaussian, centre: Mapping[str, Tensor]
) -> LowRank:
    """Add a low-rank or elementwise Gaussian; the former with a positive weight."""
    if state is None:
        zeros = {name: _column(tensor).zero_() for name, tensor in centre.items()}
        state = LowRank(centre, zeros, {name: zero.clone() for name, zero in zeros.items()})
    shift = {name: _column(term.mean[name]) - _column(centre[name]) for name in centre}
    for name in centre:
        diagonal = _column(_diagonal(term, name))
        state.diagonal[name].add_(diagonal, alpha=weight)
        state.moment[name].add_(diagonal * shift[name], alpha=weight)
    if isinstance(term, LowRankGaussian):
        rows = {name: factor.double() for name, factor in term.rows().items()}
        projected = torch.stack([u.T @ shift[name] for name, u in rows.items()]).sum(0)
        for name in centre:
            state.moment[name].add_(rows[name] @ projected, alpha=weight)
            state.factors.setdefault(name, []).append(weight**0.5 * rows[name])
    return state


def solve(state: LowRank) -> dict[str, Tensor]:
    """centre + (D + V V')^-1 moment.

    Raises:
        ValueError: the merged diagonal is not positive; the message names the tensor.
    """
    scaled = {}
    for name, diagonal in state.diagonal.items():
        if bool((diagonal <= 0).any()):
            raise ValueError(
                f"the merged diagonal of {name!r} is not positive everywhere; low-rank posteriors "
                f"need the prior's precision (damping) in their diagonals"
            )
        scaled[name] = state.moment[name] / diagonal
    if state.factors:
        factors = {name: torch.cat(blocks, 1) for name, blocks in state.factors.items()}
        inner = _inner(factors, state.diagonal)
        projected = torch.stack([v.T @ scaled[name] for name, v in factors.items()]).sum(0)
        core = torch.cholesky_solve(projected, cholesky(inner))
        for name, diagonal in state.diagonal.items():
            scaled[name] -= factors[name] @ core / diagonal
    return {
        name: (_column(tensor) + scaled[name]).view(tensor.shape)
        for name, tensor in state.centre.items()
    }


def log_density(term: Gaussian, point: Mapping[str, Tensor]) -> float:
    """log N(point), less the constant -P/2 log 2 pi."""
    assert isinstance(term, LowRankGaussian)
    factors = {name: factor.double() for name, factor in term.rows().items()}
    diagonal = {name: _column(term.diagonal[name]) for name in point}
    shift = {name: _column(point[name]) - _column(term.mean[name]) for name in point}
    quadratic = sum(float((diagonal[name] * shift[name] ** 2).sum()) for name in point)
    projected = torch.stack([v.T @ shift[name] for name, v in factors.items()]).sum(0)
    inner = cholesky(_inner(factors, diagonal))
    log_determinant = sum(float(diagonal[name].log().sum()) for name in point)
    log_determinant += 2 * float(inner.diagonal().log().sum())
    return (log_determinant - quadratic - float((projected**2).sum())) / 2


def _inner(factors: Mapping[str, Tensor], diagonal: Mapping[str, Tensor]) -> Tensor:
    """I + V' D^-1 V."""
    gram = torch.stack([v.T @ (v / diagonal[name]) for name, v in factors.items()]).sum(0)
    return gram + torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


def _diagonal(term: Gaussian, name: str) -> Tensor:
    return term.diagonal[name] if isinstance(term, LowRankGaussian) else elementwise(term, name)


def _column(tensor: Tensor) -> Tensor:
    """A copy in fp64, of shape (elements, 1)."""
    return tensor.detach().to(torch.float64, copy=True).reshape(-1, 1)
