"""The Gaussian process on the previews."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch import Tensor

from optuna_merge.surrogate._kernels import (
    JITTER,
    features,
    heavy_similarities,
    inverse_factor,
    location_and_scale,
    own_curve,
    without_outliers,
)
from optuna_merge.surrogate._subset import spread_subset

Array = npt.NDArray[np.float64]

MAX_PREVIEWS = 300
"""The posterior of the previews is conditioned on at most so many of them."""

SATURATIONS = (0.1, 0.25, 0.5, 1.0)
"""Of the curves of the own weight, as the truth's are."""

_MAX_FIT = 120  # previews that the hyperparameters are fitted to
_MAX_ITERATIONS = 75
_TASK_LENGTHS_SCALE, _TASK_LENGTHS_FREEDOM = 0.2, 2.0  # of Student's t, their prior


@functools.lru_cache(maxsize=64)
def _fit_previews(
    weights_bytes: bytes, y_bytes: bytes, noise_bytes: bytes, n_tasks: int, own: int | None
) -> tuple[float, ...]:
    """Maximum a posteriori log length scales, log amplitude and log noise variance.

    The length scales are a common one times a factor per task. The factors' logarithms have a
    prior of Student's t: most are near 0, for in many dimensions as many free ones are fitted to
    noise, but a metric that hears little of the other tasks' weights may say so.

    A pure function of the data, of which a subset is used; the cache only saves time.
    """
    weights = np.frombuffer(weights_bytes).reshape(-1, n_tasks)
    values = np.frombuffer(y_bytes)
    subset = spread_subset(weights, values, _MAX_FIT)
    x, y = features(weights[subset]), torch.as_tensor(values[subset])
    known_noise = torch.as_tensor(np.frombuffer(noise_bytes)[subset])
    n = len(y)
    columns = _linear(weights[subset], own)
    linear = columns @ columns.T
    squares = (x[:, None, :] - x[None, :, :]).square().reshape(n * n, n_tasks)
    prior_mean = np.array([math.log(2.0), math.log(1e-4), math.log(1.5)])
    prior_std = np.array([1.5, 2.5, 1.0])
    start = np.concatenate([np.zeros(n_tasks), prior_mean])
    spread = _TASK_LENGTHS_FREEDOM * _TASK_LENGTHS_SCALE**2

    def loss(theta_values: Array) -> tuple[float, Array]:
        theta = torch.tensor(theta_values, dtype=torch.float64, requires_grad=True)
        lengths = theta[:n_tasks] + theta[n_tasks + 2]
        scaled = (squares @ torch.exp(-2 * lengths)).reshape(n, n)
        kernel = theta[n_tasks].exp() * torch.rsqrt(1.0 + scaled) + linear
        noise = theta[n_tasks + 1].exp() + known_noise + JITTER
        chol, failed = torch.linalg.cholesky_ex(kernel + torch.diag(noise))
        if failed.item():
            return 1e10, np.zeros_like(theta_values)
        white = torch.linalg.solve_triangular(chol, y[:, None], upper=False)
        value = 0.5 * white.square().sum() + chol.diagonal().log().sum()
        (gradient,) = torch.autograd.grad(value, theta)
        offset, factors = (theta_values[n_tasks:] - prior_mean) / prior_std, theta_values[:n_tasks]
        power = 0.5 * (_TASK_LENGTHS_FREEDOM + 1.0)
        penalty = 0.5 * float(offset @ offset)
        penalty += power * float(np.log1p(np.square(factors) / spread).sum())
        slopes = [2.0 * power * factors / (spread + np.square(factors)), offset / prior_std]
        return value.item() + penalty, gradient.numpy() + np.concatenate(slopes)

    with torch.enable_grad():
        result = minimize(
            loss,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=[(-4.0, 4.0)] * n_tasks + [(-6.0, 6.0), (math.log(1e-7), 1.0), (-4.0, 4.0)],
            options={"maxiter": _MAX_ITERATIONS},
        )
    *factors, amplitude, own_noise, length = (float(v) for v in result.x)
    return (*(factor + length for factor in factors), amplitude, own_noise)


def _fit_size(n: int) -> int:
    """Number of first previews to fit to, in steps of 10 %: the cache has the fit between."""
    size = 40
    if n <= size:
        return n
    while (larger := size + max(size // 10, 1)) <= n:
        size = larger
    return size


class _Places(NamedTuple):
    """Task weights as the process sees them: inputs `n x T` and `_linear`'s columns."""

    x: Tensor
    linear: Tensor


def _linear(weights: Array, own: int | None) -> Tensor:
    """What has normal slopes of variance 1: the offset and, of a task's metric, its curves."""
    one = torch.ones(len(weights), 1, dtype=torch.float64)
    if own is None:
        return one
    n_tasks = weights.shape[1]
    weight = torch.as_tensor(weights[:, own, None] * n_tasks)
    saturations = torch.tensor(SATURATIONS, dtype=torch.float64)
    return torch.cat([one, own_curve(weight, saturations, n_tasks)], 1)


class PreviewProcess:
    """Gaussian process on the previews, with a length scale per task; larger values are better.

    Its kernel is the inverse multiquadric, the rational quadratic one of exponent 1/2 (Rasmussen
    and Williams 2006, equation 4.19): a mixture of squared exponentials of many length scales.
    Of a task's metric its `own` weight tells the most: curves of it are added, their slopes
    integrated out, so that few previews are enough to know their part. Unknown variances of errors
    are NaN (a common one is fitted on top). Points that are `pending` reduce the variance only.
    Predictions p stand for `location + scale * p`.
    """

    def __init__(
        self,
        weights: Array,
        values: Array,
        noise: Array | None,
        pending: Array,
        own: int | None = None,
    ) -> None:
        n_tasks = weights.shape[1]
        self._own = own
        first = slice(0, _fit_size(len(values)))
        values = without_outliers(values, values[first])
        self.location, self.scale = location_and_scale(values[first])
        y = (values - self.location) / self.scale
        known = np.zeros_like(y) if noise is None else np.nan_to_num(noise) / self.scale**2
        theta = _fit_previews(
            weights[first].tobytes(), y[first].tobytes(), known[first].tobytes(), n_tasks, own
        )
        self._length = torch.tensor(theta[:n_tasks], dtype=torch.float64).exp()
        self._amplitude, own_noise = math.exp(theta[n_tasks]), math.exp(theta[n_tasks + 1])

        keep = spread_subset(weights, y, MAX_PREVIEWS)
        self.anchors = weights[keep]
        self._at = at = self._place(self.anchors)
        self._noise = noise_all = torch.as_tensor(known[keep]) + (own_noise + JITTER)
        chol = torch.linalg.cholesky(self._kernel(at, at) + torch.diag(noise_all))
        self._alpha = torch.cholesky_solve(torch.as_tensor(y[keep])[:, None], chol)[:, 0]
        self._at_var = at
        if len(pending):
            self._at_var = at = _Places(*map(torch.cat, zip(at, self._place(pending))))
            noise_all = torch.cat(
                [noise_all, noise_all.new_full((len(pending),), own_noise + 1e-6)]
            )
            chol = torch.linalg.cholesky(self._kernel(at, at) + torch.diag(noise_all))
        self._whiten = inverse_factor(chol)

    def _place(self, weights: Array) -> _Places:
        return _Places(features(weights) / self._length, _linear(weights, self._own))

    def _kernel(self, a: _Places, b: _Places) -> Tensor:
        return heavy_similarities(a.x, b.x).mul_(self._amplitude).addmm_(a.linear, b.linear.T)

    def predict(self, weights: Array) -> tuple[Tensor, Tensor]:
        """Standardised mean and variance at `q x T`; two tensors of length q."""
        at = self._place(weights)
        kernel = self._kernel(self._at_var, at)
        variance = self._amplitude + at.linear.square().sum(1)
        variance -= (self._whiten @ kernel).square_().sum(0)
        return kernel[: len(self._alpha)].T @ self._alpha, variance.clamp_min(1e-12)

    def explained(self, variance: Tensor) -> Tensor:
        """How much of the variance another preview at the same place would take away."""
        return variance.square() / (variance + self._noise.median())

    def mean(self, weights: Array) -> Tensor:
        """The mean alone, for a fraction of the cost."""
        return self._kernel(self._place(weights), self._at) @ self._alpha
