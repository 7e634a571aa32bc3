"""What the Gaussian processes share: features, kernels, units."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.float64]

JITTER = 1e-8


def features(weights: Array) -> Tensor:
    """Weights scaled so that two random points of the simplex are about 1 apart for any T."""
    w = torch.as_tensor(np.ascontiguousarray(weights), dtype=torch.float64)
    return w * math.sqrt(w.shape[-1] / 2)


def similarities(a: Tensor, b: Tensor) -> Tensor:
    """exp(-|a - b|^2 / 2) of each pair of rows, in one piece of memory: these are large."""
    return _minus_half_squares(a, b).exp_()


def heavy_similarities(a: Tensor, b: Tensor) -> Tensor:
    """(1 + |a - b|^2)^(-1/2) of each pair of rows: correlation that reaches far."""
    return _minus_half_squares(a, b).mul_(-2.0).add_(1.0).rsqrt_()


def own_curve(own: Tensor, saturation: Tensor, n_tasks: int) -> Tensor:
    """What a task's own weight is worth to it: -1/2 without any, 1/2 alone, saturating between.

    Args:
        own: The task's weight, as a multiple of uniform weights.
        saturation: The same unit: where most of what there is to gain is gained.
        n_tasks: Number of tasks.
    """
    return torch.expm1(-own / saturation) / torch.expm1(-n_tasks / saturation) - 0.5


def _minus_half_squares(a: Tensor, b: Tensor) -> Tensor:
    halves = torch.addmm(-0.5 * b.square().sum(-1), a, b.T)
    halves -= 0.5 * a.square().sum(-1)[:, None]
    return halves.clamp_max_(0.0)


def inverse_factor(chol: Tensor) -> Tensor:
    """Inverse of a triangular factor: thousands of points are whitened faster by a product."""
    eye = torch.eye(chol.shape[-1], dtype=chol.dtype).expand_as(chol)
    inverse: Tensor = torch.linalg.solve_triangular(chol, eye, upper=False)
    return inverse


def without_outliers(values: Array, reference: Array, reach: float = 6.0) -> Array:
    """Values far below the bulk of the reference are raised: one collapse must not set the scale.

    Larger is better. `reach`: interquartile ranges that a value may lie below the lower quartile.
    """
    low, high = np.quantile(reference, [0.25, 0.75])
    return np.maximum(values, low - reach * (high - low)) if high > low else values


def location_and_scale(values: Array) -> tuple[float, float]:
    location, scale = float(values.mean()), float(values.std())
    return location, scale if scale > 1e-12 * (1.0 + abs(location)) else 1.0
