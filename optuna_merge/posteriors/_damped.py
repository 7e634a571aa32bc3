"""The prior's share of a precision: added to curvature that was estimated from data."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from optuna_merge.posteriors._families import Posterior
from optuna_merge.posteriors._full import FullGaussian
from optuna_merge.posteriors._gaussian import DiagonalGaussian, IsotropicGaussian
from optuna_merge.posteriors._kronecker import KroneckerGaussian
from optuna_merge.posteriors._low_rank import LowRankGaussian
from optuna_merge.posteriors._mixture import Mixture

Factors = tuple[Tensor | None, Tensor | None]


def damped(posterior: Posterior, delta: float) -> Posterior:
    """The posterior with `delta` added to its precision: H + delta I.

    A Kronecker product of two factors is damped in each factor, too,

        (A + pi sqrt(delta) I) x (G + sqrt(delta) / pi I) + delta I,

    with pi^2 the ratio of the factors' mean eigenvalues (K-FAC, arXiv 1503.05671, section 6.3).
    Directions in which one factor is nearly zero are then held by the other: without this, small
    dampings give merges far from all tasks.

    Args:
        posterior: Any family; its precision is the data part alone.
        delta: The prior's precision, on the scale of the averaged loss's curvature. Large values
            lead to simple averaging, small ones to Fisher merging.

    Examples:
        >>> curvature = {"w": torch.tensor([0.0, 2.0])}
        >>> posterior = DiagonalGaussian({"w": torch.zeros(2)}, curvature)
        >>> damped(posterior, 0.5).precision
        {'w': tensor([0.5000, 2.5000])}
    """
    match posterior:
        case IsotropicGaussian(precision=precision):
            if isinstance(precision, dict):
                scalars = {name: value + delta for name, value in precision.items()}
                return replace(posterior, precision=scalars)
            return replace(posterior, precision=precision + delta)
        case DiagonalGaussian():
            # In the mean's order, whatever order the curvature came in: hashes must agree.
            values = {name: posterior.precision[name] + delta for name in posterior.mean}
            return replace(posterior, precision=values)
        case LowRankGaussian():
            diagonal = {name: posterior.diagonal[name] + delta for name in posterior.mean}
            return replace(posterior, diagonal=diagonal)
        case KroneckerGaussian():
            values = {name: value + delta for name, value in posterior.precision.items()}
            factors = {name: _damped_pair(pair, delta) for name, pair in posterior.factors.items()}
            return replace(
                posterior,
                factors=factors,
                precision=values,
                damping=posterior.damping + delta,
            )
        case FullGaussian():
            eye = torch.eye(len(posterior.precision)).to(posterior.precision)
            return replace(posterior, precision=posterior.precision + delta * eye)
        case Mixture():
            components = [damped(component, delta) for component in posterior.components]
            return replace(posterior, components=components)  # type: ignore[arg-type]


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


def mean_curvature(posterior: Posterior) -> float:
    """Mean of the precision's diagonal: the scale on which a damping is small or large."""
    match posterior:
        case IsotropicGaussian():
            total = sum(posterior.scalar(n) * t.numel() for n, t in posterior.mean.items())
        case DiagonalGaussian():
            total = sum(float(h.double().sum()) for h in posterior.precision.values())
        case LowRankGaussian():
            total = sum(float(d.double().sum()) for d in posterior.diagonal.values())
            total += sum(float(u.double().square().sum()) for u in posterior.rows().values())
        case KroneckerGaussian():
            total = sum(float(h.double().sum()) for h in posterior.precision.values())
            apart = sum(posterior.mean[name].numel() for name in posterior.precision)
            whole = sum(tensor.numel() for tensor in posterior.mean.values())
            total += posterior.damping * (whole - apart)
            for name, pair in posterior.factors.items():
                tensor = posterior.mean[name]
                sizes = (tensor.numel() // tensor.shape[0], tensor.shape[0])
                a, g = (
                    size if factor is None else float(factor.double().diagonal().sum())
                    for size, factor in zip(sizes, pair)
                )
                total += a * g
        case FullGaussian():
            total = float(posterior.precision.double().diagonal().sum())
        case Mixture():
            each = [mean_curvature(component) for component in posterior.components]
            return sum(each) / len(each)
    return total / sum(tensor.numel() for tensor in posterior.mean.values())
