"""Gaussian processes over task weights: many previews, few truths.

The posterior of the truth comes in two stages (an autoregressive model of two fidelities as in
Kennedy and O'Hagan, Biometrika 87, 2000, equation 1), averaged over what is not known:

1. a Gaussian process on the previews gives a mean p(w) and a variance;
2. the truth is  c + r p(w) + d(w)  or, without the preview,  c + d(w). The offset c, the slope r
   and the Gaussian process d are integrated out; the amplitude, length scale and noise of d, and
   whether the preview is used at all, are points of a small grid. Each point of the grid is
   weighted by its prior times its leave-one-out predictive likelihood (Rasmussen and Williams
   2006, equations 5.10 to 5.12).

Refined previews stand between the two, each fidelity the input of the next one: the model of the
truth, with the refined previews in the truths' place, gives p(w) and its variance.

So worthless previews lose their say as the truths come in. All is float64 on the CPU; torch's
default type and random state are left alone.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from scipy.special import ndtri
from scipy.stats import qmc
from torch import Tensor

from optuna_merge.samplers._history import Series, spread_subset

Array = npt.NDArray[np.float64]

MAX_PREVIEWS = 300
"""The posterior of the previews is conditioned on at most so many of them."""
MAX_TRUTHS = 100

_MAX_FIT = 120  # previews that the hyperparameters are fitted to
_MAX_ITERATIONS = 75
_TASK_LENGTHS_SCALE, _TASK_LENGTHS_FREEDOM = 0.2, 2.0  # of Student's t, their prior
_JITTER = 1e-8

_threads_lock = threading.Lock()
_threads_users = 0
_threads_before = 1


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """Run torch on one thread inside; matrices of a few hundred rows only lose by more."""
    global _threads_users, _threads_before
    with _threads_lock:
        if _threads_users == 0:
            _threads_before = torch.get_num_threads()
        _threads_users += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _threads_lock:
            _threads_users -= 1
            if _threads_users == 0:
                torch.set_num_threads(_threads_before)


def _features(weights: Array) -> Tensor:
    """Weights scaled so that two random points of the simplex are about 1 apart for any T."""
    w = torch.as_tensor(np.ascontiguousarray(weights), dtype=torch.float64)
    return w * math.sqrt(w.shape[-1] / 2)


def _similarities(a: Tensor, b: Tensor) -> Tensor:
    """exp(-|a - b|^2 / 2) of each pair of rows, in one piece of memory: these are large."""
    return _minus_half_squares(a, b).exp_()


def _heavy_similarities(a: Tensor, b: Tensor) -> Tensor:
    """(1 + |a - b|^2)^(-1/2) of each pair of rows: correlation that reaches far."""
    return _minus_half_squares(a, b).mul_(-2.0).add_(1.0).rsqrt_()


def _minus_half_squares(a: Tensor, b: Tensor) -> Tensor:
    halves = torch.addmm(-0.5 * b.square().sum(-1), a, b.T)
    halves -= 0.5 * a.square().sum(-1)[:, None]
    return halves.clamp_max_(0.0)


def _inverse_factor(chol: Tensor) -> Tensor:
    """Inverse of a triangular factor: thousands of points are whitened faster by a product."""
    eye = torch.eye(chol.shape[-1], dtype=chol.dtype).expand_as(chol)
    inverse: Tensor = torch.linalg.solve_triangular(chol, eye, upper=False)
    return inverse


def _without_outliers(values: Array, reference: Array) -> Array:
    """Values far below the bulk of the reference are raised: one collapse must not set the scale.

    Larger is better here, so nothing that matters for the search is lost.
    """
    low, high = np.quantile(reference, [0.25, 0.75])
    return np.maximum(values, low - 6.0 * (high - low)) if high > low else values


def _location_and_scale(values: Array) -> tuple[float, float]:
    location, scale = float(values.mean()), float(values.std())
    return location, scale if scale > 1e-12 * (1.0 + abs(location)) else 1.0


@functools.lru_cache(maxsize=64)
def _fit_previews(
    weights_bytes: bytes, y_bytes: bytes, noise_bytes: bytes, n_tasks: int
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
    x, y = _features(weights[subset]), torch.as_tensor(values[subset])
    known_noise = torch.as_tensor(np.frombuffer(noise_bytes)[subset])
    n = len(y)
    squares = (x[:, None, :] - x[None, :, :]).square().reshape(n * n, n_tasks)
    prior_mean = np.array([math.log(2.0), math.log(1e-4), math.log(1.5)])
    prior_std = np.array([1.5, 2.5, 1.0])
    start = np.concatenate([np.zeros(n_tasks), prior_mean])
    spread = _TASK_LENGTHS_FREEDOM * _TASK_LENGTHS_SCALE**2

    def loss(theta_values: Array) -> tuple[float, Array]:
        theta = torch.tensor(theta_values, dtype=torch.float64, requires_grad=True)
        lengths = theta[:n_tasks] + theta[n_tasks + 2]
        scaled = (squares @ torch.exp(-2 * lengths)).reshape(n, n)
        kernel = theta[n_tasks].exp() * torch.rsqrt(1.0 + scaled) + 1.0
        noise = theta[n_tasks + 1].exp() + known_noise + _JITTER
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
    """Number of first previews to fit to: all while few, then in steps of about 10 %.

    Between the steps the fit comes from the cache. It is still a function of the study alone.
    """
    size = 40
    if n <= size:
        return n
    while (larger := size + max(size // 10, 1)) <= n:
        size = larger
    return size


class PreviewProcess:
    """Gaussian process on the previews, with a length scale per task.

    Its kernel is the inverse multiquadric, the rational quadratic one of exponent 1/2 (Rasmussen
    and Williams 2006, equation 4.19): a mixture of squared exponentials of many length scales.
    With few previews in many dimensions it predicts better than any single one.

    Args:
        weights: `n x T`, n >= 1.
        values: `n`, larger is better.
        noise: `n` variances of the errors, NaN where unknown (a common one is fitted on top).
        pending: `k x T` points whose values will be known soon: they reduce the variance only.

    The predictions are standardised: `location + scale * prediction` is in the values' unit.
    """

    def __init__(self, weights: Array, values: Array, noise: Array | None, pending: Array) -> None:
        n_tasks = weights.shape[1]
        first = slice(0, _fit_size(len(values)))
        values = _without_outliers(values, values[first])
        self.location, self.scale = _location_and_scale(values[first])
        y = (values - self.location) / self.scale
        known = np.zeros_like(y) if noise is None else np.nan_to_num(noise) / self.scale**2
        theta = _fit_previews(
            weights[first].tobytes(), y[first].tobytes(), known[first].tobytes(), n_tasks
        )
        self._length = torch.tensor(theta[:n_tasks], dtype=torch.float64).exp()
        self._amplitude, own_noise = math.exp(theta[n_tasks]), math.exp(theta[n_tasks + 1])

        keep = spread_subset(weights, y, MAX_PREVIEWS)
        self.anchors = weights[keep]
        self._x = _features(self.anchors) / self._length
        self._noise = noise_all = torch.as_tensor(known[keep]) + (own_noise + _JITTER)
        chol = torch.linalg.cholesky(self._kernel(self._x, self._x) + torch.diag(noise_all))
        self._alpha = torch.cholesky_solve(torch.as_tensor(y[keep])[:, None], chol)[:, 0]
        self._x_var = self._x
        if len(pending):
            self._x_var = torch.cat([self._x, _features(pending) / self._length])
            noise_all = torch.cat(
                [noise_all, noise_all.new_full((len(pending),), own_noise + 1e-6)]
            )
            kernel = self._kernel(self._x_var, self._x_var) + torch.diag(noise_all)
            chol = torch.linalg.cholesky(kernel)
        self._whiten = _inverse_factor(chol)

    def _kernel(self, a: Tensor, b: Tensor) -> Tensor:
        return _heavy_similarities(a, b).mul_(self._amplitude).add_(1.0)

    def predict(self, weights: Array) -> tuple[Tensor, Tensor]:
        """Standardised mean and variance at `q x T`; two tensors of length q."""
        kernel = self._kernel(self._x_var, _features(weights) / self._length)
        variance = self._amplitude + 1.0 - (self._whiten @ kernel).square_().sum(0)
        return kernel[: len(self._x)].T @ self._alpha, variance.clamp_min(1e-12)

    def mean(self, weights: Array) -> Tensor:
        """The mean alone, for a fraction of the cost."""
        return self._kernel(_features(weights) / self._length, self._x) @ self._alpha


# The grid. Variances are in units of the standardised truth, lengths in units of `_features`.
_AMPLITUDES = (0.003, 0.03, 0.3, 3.0)
_LENGTHS = (0.4, 0.8, 1.6, 3.2, 6.4)
_NOISES = (1e-6, 1e-4, 1e-2, 1e-1, 0.5)
_MIN_AMPLITUDE_ALONE = 0.3  # without the preview, d has to explain everything
_SLOPE_MEAN, _SLOPE_VARIANCE = 0.7, 0.5
_OFFSET_VARIANCE = 1.0
_ODDS_OF_PREVIEW = 3.0
_MAX_MEMBERS = 24
_NEGLIGIBLE = 6.0  # log probability that a member may lie below the best one
_SCREENED = 40  # truths that choose those members out of the whole grid


@dataclass(frozen=True)
class _Members:
    """Points of the grid, one entry each: four tensors of length S."""

    use_preview: Tensor
    amplitude: Tensor
    length: Tensor
    noise: Tensor

    @classmethod
    def grid(cls, with_preview: bool) -> _Members:
        axes = ((0.0, 1.0) if with_preview else (0.0,), _AMPLITUDES, _LENGTHS, _NOISES)
        points = torch.cartesian_prod(*(torch.tensor(a, dtype=torch.float64) for a in axes))
        plausible = (points[:, 0] == 1.0) | (points[:, 1] >= _MIN_AMPLITUDE_ALONE)
        return cls(*points[plausible].unbind(1))

    def take(self, index: Tensor) -> _Members:
        return _Members(
            self.use_preview[index], self.amplitude[index], self.length[index], self.noise[index]
        )

    def log_prior(self) -> Tensor:
        log_prior = -0.5 * (self.length / 2.0).log().square()
        log_prior -= 0.5 * ((self.noise / 1e-4).log() / 4.0).square()
        for use, odds in ((0.0, 1.0), (1.0, _ODDS_OF_PREVIEW)):
            rows = self.use_preview == use
            log_prior[rows] += math.log(odds) - torch.logsumexp(log_prior[rows], 0)
        return log_prior

    def kernel(self, xa: Tensor, xb: Tensor, pa: Tensor, pb: Tensor) -> Tensor:
        """`S x a x b`; `pa`, `pb` are the standardised preview means at `xa`, `xb`."""
        lengths, which = torch.unique(self.length, return_inverse=True)  # few: each once
        shapes = torch.stack([_similarities(xa / length, xb / length) for length in lengths])
        slopes = self.use_preview[:, None, None] * (_SLOPE_VARIANCE * pa[:, None] * pb)
        return torch.addcmul(
            slopes.add_(_OFFSET_VARIANCE), self.amplitude[:, None, None], shapes[which]
        )


class TruthModel:
    """Posterior of the truth at any task weights, from all previews and truths so far.

    Make one with `TruthModel.fit`. It is a mixture of Gaussians, one per point of the grid that
    the module's text describes (at most the 24 best are kept).

    Attributes:
        log_weights: log probabilities of the members, `S`.
        anchors: weights of the previews and truths that the model holds, `n x T`.
    """

    def __init__(self, series: Series) -> None:
        n_tasks = series.preview_weights.shape[1]
        self._sign = series.sign
        pending = np.empty((0, n_tasks)) if series.pending is None else series.pending
        self._previews = _fidelity_below(series, pending)
        truths = series.sign * series.truths
        if len(truths):
            truths = _without_outliers(truths, truths)
        keep = spread_subset(series.truth_weights, truths, MAX_TRUTHS)
        self.truth_weights, truths = series.truth_weights[keep], truths[keep]
        self._set_unit(truths)
        self.anchors = self.truth_weights
        if self._previews is not None:
            self.anchors = np.concatenate([self._previews.anchors, self.truth_weights])
        members = _Members.grid(self._previews is not None)
        log_weights = members.log_prior()
        self._x = _features(self.truth_weights)
        self._p, p_variance = self._preview(self.truth_weights)
        self._n = len(truths)
        y = torch.as_tensor((truths - self._location) / self._scale)
        if self._n > _SCREENED:  # some of the truths tell which members are worth the cost of all
            some = torch.as_tensor(spread_subset(self.truth_weights, truths, _SCREENED))
            likelihood, _ = self._leave_one_out(members, y, p_variance, some)
            best = (log_weights + likelihood).argsort(descending=True, stable=True)[:_MAX_MEMBERS]
            members, log_weights = members.take(best), log_weights[best]
        likelihood, alpha = self._leave_one_out(members, y, p_variance, torch.arange(self._n))
        log_weights = log_weights + likelihood
        best = log_weights.argsort(descending=True, stable=True)[:_MAX_MEMBERS]
        best = best[log_weights[best] > log_weights[best[0]] - _NEGLIGIBLE]
        self._members, self._alpha = members.take(best), alpha[best]
        self.log_weights = torch.log_softmax(log_weights[best], 0)
        self._set_variance_points(pending, p_variance)

    @classmethod
    def fit(cls, series: Series) -> TruthModel:
        """Fit to a `Series`; at least one preview or truth is needed for useful predictions."""
        with single_thread(), torch.no_grad():
            return cls(series)

    def _set_unit(self, truths: Array) -> None:
        if len(truths) >= 3 or self._previews is None:
            self._location, self._scale = (
                _location_and_scale(truths) if len(truths) else (0.0, 1.0)
            )
        else:  # too few to know their spread: the previews' is the best guess
            self._scale = self._previews.scale
            self._location = float(truths.mean()) if len(truths) else self._previews.location

    def _preview(self, weights: Array) -> tuple[Tensor, Tensor]:
        if self._previews is None:
            return torch.zeros(2, len(weights), dtype=torch.float64).unbind(0)  # type: ignore[return-value]
        return self._previews.predict(weights)

    @staticmethod
    def _covariance(members: _Members, x: Tensor, p: Tensor, p_variance: Tensor) -> Tensor:
        noise = members.noise[:, None] + _JITTER * 10
        noise = noise + members.use_preview[:, None] * _SLOPE_MEAN**2 * p_variance
        return members.kernel(x, x, p, p) + torch.diag_embed(noise)

    def _leave_one_out(
        self, members: _Members, y: Tensor, p_variance: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Log predictive likelihood of the truths in `rows`, `S`, and dual weights, `S x n`."""
        p = self._p[rows]
        covariance = self._covariance(members, self._x[rows], p, p_variance[rows])
        residual = y[rows] - _SLOPE_MEAN * members.use_preview[:, None] * p
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
        alpha = (inverse @ residual[..., None])[..., 0]
        precision = inverse.diagonal(dim1=-2, dim2=-1)
        return 0.5 * (precision.log() - alpha.square() / precision).sum(-1), alpha

    def _set_variance_points(self, pending: Array, p_variance: Tensor) -> None:
        """Pending points count as truths at their predicted mean: only the variance shrinks."""
        self._x_var, self._p_var = self._x, self._p
        if len(pending):
            p, v = self._preview(pending)
            self._x_var = torch.cat([self._x, _features(pending)])
            self._p_var, p_variance = torch.cat([self._p, p]), torch.cat([p_variance, v])
        if len(self._x_var):
            covariance = self._covariance(self._members, self._x_var, self._p_var, p_variance)
            self._whiten = _inverse_factor(torch.linalg.cholesky(covariance))

    def standardise(self, values: Array) -> Array:
        """Truths in their own unit as the members' means are: larger is better."""
        return np.asarray((self._sign * values - self._location) / self._scale)

    def unstandardise(self, values: Array) -> Array:
        """The way back."""
        return np.asarray(self._sign * (values * self._scale + self._location))

    @property
    def scale(self) -> float:
        """One standardised unit, in the truth's own."""
        return self._scale

    @property
    def trust(self) -> float:
        """Probability in [0, 1] that the previews help to predict the truths."""
        return float((self.log_weights.exp() * self._members.use_preview).sum())

    def siding(self, with_preview: bool) -> TruthModel:
        """The same posterior given that the previews help, or given that they don't.

        An expected improvement averaged over both sides follows the optimistic side, even when it
        is the less likely one. Taking a side at random, with the probability `trust`, does not.
        """
        chosen = self._members.use_preview == float(with_preview)
        if not chosen.any():
            return self
        sided = copy.copy(self)
        sided.log_weights = torch.log_softmax(self.log_weights.masked_fill(~chosen, -torch.inf), 0)
        return sided

    def members(self, weights: Array) -> tuple[Tensor, Tensor]:
        """Mean and variance of each member at `q x T`: two `S x q` tensors.

        Standardised, and signed so that larger is better.
        """
        p, p_variance = self._preview(weights)
        m, x = self._members, _features(weights)
        use = m.use_preview[:, None]
        slope = _SLOPE_MEAN * use
        mean = slope * p
        variance = m.amplitude[:, None] + _OFFSET_VARIANCE + _SLOPE_VARIANCE * use * p.square()
        if len(self._x_var):
            kernel = m.kernel(self._x_var, x, self._p_var, p)
            variance = variance - (self._whiten @ kernel).square_().sum(1)
            if self._n:
                mean = mean + (self._alpha[:, None, :] @ kernel[:, : self._n])[:, 0]
                slope = slope + _SLOPE_VARIANCE * use * (self._alpha @ self._p)[:, None]
        return mean, (variance + slope.square() * p_variance).clamp_min(1e-10)

    def means(self, weights: Array) -> Tensor:
        """The members' means alone, `S x q`, for a fraction of the cost."""
        p = torch.zeros(len(weights), dtype=torch.float64)
        if self._previews is not None:
            p = self._previews.mean(weights)
        mean = _SLOPE_MEAN * self._members.use_preview[:, None] * p
        if self._n:
            kernel = self._members.kernel(self._x, _features(weights), self._p, p)
            mean = mean + (self._alpha[:, None, :] @ kernel)[:, 0]
        return mean

    def moments(self, weights: Array) -> tuple[Tensor, Tensor]:
        """Mean and variance of the mixture at `q x T`: two tensors of length q, standardised."""
        mean, variance = self.members(weights)
        share = self.log_weights.exp()[:, None]
        centre = (share * mean).sum(0)
        return centre, (share * (variance + (mean - centre).square())).sum(0)

    def predict(self, weights: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the truth (its noise not included), in its own unit.

        Args:
            weights: Canonical task weights, `q x T`.

        Returns:
            Two arrays of length q.
        """
        with single_thread(), torch.no_grad():
            mean, variance = self.moments(np.atleast_2d(weights))
        return self.unstandardise(mean.numpy()), variance.sqrt().numpy() * self._scale

    def predict_mean(self, weights: Array) -> Array:
        """The mean of `predict` alone, for a fraction of the cost."""
        with single_thread(), torch.no_grad():
            mean = self.log_weights.exp() @ self.means(weights)
        return self.unstandardise(mean.numpy())


class _RefinedProcess:
    """The posterior of the refined previews, in the place of a `PreviewProcess`.

    It is the same two stages one fidelity lower: refined previews by the previews below them.
    """

    def __init__(self, model: TruthModel) -> None:
        self._model = model
        self.anchors = model.anchors
        self.location, self.scale = model._location, model._scale

    def predict(self, weights: Array) -> tuple[Tensor, Tensor]:
        """Standardised mean and variance at `q x T`; two tensors of length q."""
        return self._model.moments(weights)

    def mean(self, weights: Array) -> Tensor:
        """The mean alone."""
        return self._model.log_weights.exp() @ self._model.means(weights)


def _fidelity_below(series: Series, pending: Array) -> PreviewProcess | _RefinedProcess | None:
    """What predicts the truths: the most refined previews that there are, if any."""
    if series.refined:
        *earlier, last = series.refined
        return _RefinedProcess(
            TruthModel(
                replace(
                    series,
                    truth_weights=last.weights,
                    truths=last.values,
                    refined=tuple(earlier),
                )
            )
        )
    if not len(series.previews):
        return None
    return PreviewProcess(
        series.preview_weights, series.sign * series.previews, series.preview_noise, pending
    )


Score = Callable[[Array], Array]
"""Metric vectors `... x T` to scores `...`."""


class ScoreModel:
    """Posterior of a score that is a known function of the tasks' metrics.

    One `TruthModel` per task, independent of each other; the score's moments are those of its
    values at 128 fixed quasi-random normal draws of the metrics (composite Bayesian optimization,
    arXiv 1906.01537).

    Args:
        models: One per task, in task order.
        score: Vectorised: an array `... x T` of metrics to an array `...`.
    """

    def __init__(self, models: Sequence[TruthModel], score: Score, n_draws: int = 128) -> None:
        self.models = tuple(models)
        self._score = score
        sobol = qmc.Sobol(len(self.models), seed=0).random(n_draws)
        self._draws = ndtri(np.clip(sobol, 1e-6, 1 - 1e-6))
        self.truth_weights = self.models[0].truth_weights
        self.anchors = self.models[0].anchors

    def score(self, metrics: Array) -> Array:
        """The score function's value, checked.

        Raises:
            ValueError: The function does not turn `... x T` into `...`.
        """
        value = np.asarray(self._score(metrics), dtype=float)
        if value.shape != metrics.shape[:-1]:
            raise ValueError(
                f"score must turn an array of metrics of shape (..., {metrics.shape[-1]}) into one"
                f" number per vector: for shape {metrics.shape} expected {metrics.shape[:-1]}, got"
                f" {value.shape}. Write it with NumPy operations over the last axis."
            )
        return value

    def moments(self, weights: Array) -> tuple[Array, Array]:
        """Means and standard deviations of the tasks' metrics, two `q x T` arrays."""
        predictions = [m.predict(weights) for m in self.models]
        return (
            np.stack([mean for mean, _ in predictions], axis=-1),
            np.stack([std for _, std in predictions], axis=-1),
        )

    def means(self, weights: Array) -> Array:
        """Means of the tasks' metrics, `q x T`."""
        return np.stack([m.predict_mean(weights) for m in self.models], axis=-1)

    def metric_draws(self, weights: Array) -> Array:
        """Draws of the tasks' metrics, `n_draws x q x T`."""
        mean, std = self.moments(weights)
        return np.asarray(mean + std * self._draws[:, None, :])

    def draws(self, weights: Array) -> Array:
        """Scores of the draws, `n_draws x q`."""
        return self.score(self.metric_draws(weights))

    def predict(self, weights: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the true score at `q x T`: two arrays of length q."""
        draws = self.draws(np.atleast_2d(weights))
        return draws.mean(axis=0), draws.std(axis=0)
