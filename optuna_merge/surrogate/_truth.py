"""Gaussian processes over task weights: many previews, few truths.

The posterior of the truth comes in two stages (an autoregressive model of two fidelities as in
Kennedy and O'Hagan, Biometrika 87, 2000, equation 1), averaged over what is not known:

1. a Gaussian process on the previews gives a mean p(w) and a variance;
2. the truth is  c + r p(w) + d(w)  or, without the preview,  c + d(w). The offset c, the slope r
   and the Gaussian process d are integrated out; the amplitude, length scale and noise of d, and
   whether the preview is used at all, are points of a small grid. Each point of the grid is
   weighted by its prior times its leave-one-out predictive likelihood (Rasmussen and Williams
   2006, equations 5.10 to 5.12).

So worthless previews lose their say as the truths come in. All is float64 on the CPU; torch's
default type and random state are left alone.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from optuna_merge.surrogate._kernels import (
    JITTER,
    features,
    inverse_factor,
    location_and_scale,
    similarities,
    without_outliers,
)
from optuna_merge.surrogate._previews import PreviewProcess
from optuna_merge.surrogate._subset import spread_subset
from optuna_merge.surrogate._threads import single_thread
from optuna_merge.trials import Series

Array = npt.NDArray[np.float64]

MAX_TRUTHS = 100

# The grid. Variances are in units of the standardised truth, lengths in units of `features`.
_AMPLITUDES = (0.003, 0.03, 0.3, 3.0)
_LENGTHS = (0.4, 0.8, 1.6, 3.2, 6.4)
_NOISES = (1e-6, 1e-4, 1e-2, 1e-1, 0.5)
_MIN_AMPLITUDE_ALONE = 0.3  # without the preview, d has to explain everything
SLOPE_MEAN, SLOPE_VARIANCE = 0.7, 0.5
OFFSET_VARIANCE = 1.0
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
        shapes = torch.stack([similarities(xa / length, xb / length) for length in lengths])
        slopes = self.use_preview[:, None, None] * (SLOPE_VARIANCE * pa[:, None] * pb)
        return torch.addcmul(
            slopes.add_(OFFSET_VARIANCE), self.amplitude[:, None, None], shapes[which]
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
        self._previews = None
        if len(series.previews):
            self._previews = PreviewProcess(
                series.preview_weights,
                series.sign * series.previews,
                series.preview_noise,
                pending,
            )
        truths = series.sign * series.truths
        if len(truths):
            truths = without_outliers(truths, truths)
        keep = spread_subset(series.truth_weights, truths, MAX_TRUTHS)
        self.truth_weights, truths = series.truth_weights[keep], truths[keep]
        self._set_unit(truths)
        self.anchors = self.truth_weights
        if self._previews is not None:
            self.anchors = np.concatenate([self._previews.anchors, self.truth_weights])
        members = _Members.grid(self._previews is not None)
        log_weights = members.log_prior()
        self._x = features(self.truth_weights)
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
            self._location, self._scale = location_and_scale(truths) if len(truths) else (0.0, 1.0)
        else:  # too few to know their spread: the previews' is the best guess
            self._scale = self._previews.scale
            self._location = float(truths.mean()) if len(truths) else self._previews.location

    def _preview(self, weights: Array) -> tuple[Tensor, Tensor]:
        if self._previews is None:
            return torch.zeros(2, len(weights), dtype=torch.float64).unbind(0)  # type: ignore[return-value]
        return self._previews.predict(weights)

    @staticmethod
    def _covariance(members: _Members, x: Tensor, p: Tensor, p_variance: Tensor) -> Tensor:
        noise = members.noise[:, None] + JITTER * 10
        noise = noise + members.use_preview[:, None] * SLOPE_MEAN**2 * p_variance
        return members.kernel(x, x, p, p) + torch.diag_embed(noise)

    def _leave_one_out(
        self, members: _Members, y: Tensor, p_variance: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Log predictive likelihood of the truths in `rows`, `S`, and dual weights, `S x n`."""
        p = self._p[rows]
        covariance = self._covariance(members, self._x[rows], p, p_variance[rows])
        residual = y[rows] - SLOPE_MEAN * members.use_preview[:, None] * p
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
        alpha = (inverse @ residual[..., None])[..., 0]
        precision = inverse.diagonal(dim1=-2, dim2=-1)
        return 0.5 * (precision.log() - alpha.square() / precision).sum(-1), alpha

    def _set_variance_points(self, pending: Array, p_variance: Tensor) -> None:
        """Pending points count as truths at their predicted mean: only the variance shrinks."""
        self._x_var, self._p_var = self._x, self._p
        if len(pending):
            p, v = self._preview(pending)
            self._x_var = torch.cat([self._x, features(pending)])
            self._p_var, p_variance = torch.cat([self._p, p]), torch.cat([p_variance, v])
        if len(self._x_var):
            covariance = self._covariance(self._members, self._x_var, self._p_var, p_variance)
            self._whiten = inverse_factor(torch.linalg.cholesky(covariance))

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
        m, x = self._members, features(weights)
        use = m.use_preview[:, None]
        slope = SLOPE_MEAN * use
        mean = slope * p
        variance = m.amplitude[:, None] + OFFSET_VARIANCE + SLOPE_VARIANCE * use * p.square()
        if len(self._x_var):
            kernel = m.kernel(self._x_var, x, self._p_var, p)
            variance = variance - (self._whiten @ kernel).square_().sum(1)
            if self._n:
                mean = mean + (self._alpha[:, None, :] @ kernel[:, : self._n])[:, 0]
                slope = slope + SLOPE_VARIANCE * use * (self._alpha @ self._p)[:, None]
        return mean, (variance + slope.square() * p_variance).clamp_min(1e-10)

    def means(self, weights: Array) -> Tensor:
        """The members' means alone, `S x q`, for a fraction of the cost."""
        p = torch.zeros(len(weights), dtype=torch.float64)
        if self._previews is not None:
            p = self._previews.mean(weights)
        mean = SLOPE_MEAN * self._members.use_preview[:, None] * p
        if self._n:
            kernel = self._members.kernel(self._x, features(weights), self._p, p)
            mean = mean + (self._alpha[:, None, :] @ kernel)[:, 0]
        return mean

    def moments(self, weights: Array) -> tuple[Tensor, Tensor]:
        """Mean and variance of the mixture at `q x T`: two tensors of length q, standardised."""
        mean, variance = self.members(weights)
        share = self.log_weights.exp()[:, None]
        centre = (share * mean).sum(0)
        return centre, (share * (variance + (mean - centre).square())).sum(0)

    def lookahead(self, weights: Array) -> tuple[Array, Array, Array]:
        """What a preview can still change about the truth at `q x T`, in the truth's own unit.

        Returns:
            Three arrays of length q: the mean of the truth; the standard deviation of that mean
            after a preview there; that of the truth about it. The squares of the last two add up
            to the variance of `predict`.
        """
        with single_thread(), torch.no_grad():
            mean, variance = self.moments(weights)
            known = torch.zeros_like(variance)
            if self._previews is not None:
                m = self._members
                slope = SLOPE_MEAN * m.use_preview
                if self._n:
                    slope = slope + SLOPE_VARIANCE * m.use_preview * (self._alpha @ self._p)
                known = self._previews.explained(self._preview(weights)[1])
                known = known * (self.log_weights.exp() @ slope.square())
            known = torch.minimum(known, variance * (1 - 1e-6))
        moved, left = (v.sqrt().numpy() * self._scale for v in (known, variance - known))
        return self.unstandardise(mean.numpy()), moved, left

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
