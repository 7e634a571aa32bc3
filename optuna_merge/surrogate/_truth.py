"""Gaussian processes over task weights: many previews, few truths.

The posterior of the truth comes in two stages (an autoregressive model of two fidelities as in
Kennedy and O'Hagan, Biometrika 87, 2000, equation 1), averaged over what is not known:

1. a Gaussian process on the previews gives a mean p(w) and a variance, of a task's metric in the
   truth's unit;
2. the truth is built from p(w), from a curve of the own weight of the task whose metric it is,
   from half of each, or from neither, and from a smooth process (`_members.py`). What it is built
   from, and the amplitude, length scale and noise of the process, are points of a small grid. Each
   point is weighted by its prior times its leave-one-out predictive likelihood (Rasmussen and
   Williams 2006, equations 5.10 to 5.12).

So worthless previews lose their say as the truths come in. Truths that previews equal by
construction (at a task alone, and at uniform weights where the previews are corrected by that
truth) say nothing of the previews elsewhere. So the other truths alone tell whether the previews
are used, and how; the equal ones count among the points of the grid that don't use them.

All is float64 on the CPU; torch's default type and random state are left alone.
"""

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from optuna_merge.surrogate._kernels import (
    JITTER,
    features,
    inverse_factor,
    location_and_scale,
    without_outliers,
)
from optuna_merge.surrogate._members import OF_A_METRIC, OF_A_SCORE, Grid, Members, Points
from optuna_merge.surrogate._previews import PreviewProcess
from optuna_merge.surrogate._subset import spread_subset
from optuna_merge.surrogate._threads import single_thread
from optuna_merge.trials import Series

Array = npt.NDArray[np.float64]

MAX_TRUTHS = 100

_MIN_TRUTHS = 3  # that tell their unit
_NEGLIGIBLE = 6.0  # log probability that a member may lie below the best one
_SCREENED = 40  # truths that choose those members out of the whole grid
_UNTAUGHT_REACH = 100.0  # interquartile ranges: scores are made of these values too
_ENOUGH = 4  # truths that tell which of them are outliers


class TruthModel:
    """Posterior of the truth at any task weights, from all previews and truths so far.

    Make one with `TruthModel.fit`. It is a mixture of Gaussians, one per point of the grid that
    the module's text describes (the best few are kept).

    Attributes:
        log_weights: log probabilities of the members, `S`.
        anchors: weights of the previews and truths that the model holds, `n x T`.
    """

    def __init__(self, series: Series, grid: Grid | None = None) -> None:
        n_tasks = series.preview_weights.shape[1]
        self._sign = series.sign
        # Of fewer truths the unit is not known, nor what a curve may be.
        self._own = series.own if len(series.truths) >= _MIN_TRUTHS else None
        pending = np.empty((0, n_tasks)) if series.pending is None else series.pending
        self._previews = None
        if len(series.previews):
            self._previews = PreviewProcess(
                series.preview_weights,
                series.sign * series.previews,
                series.preview_noise,
                pending,
                series.own,
            )
        truths = _without_collapses(series)
        keep = spread_subset(series.truth_weights, truths, MAX_TRUTHS)
        self.truth_weights, truths = series.truth_weights[keep], truths[keep]
        self._set_unit(truths)
        self.anchors = self.truth_weights
        if self._previews is not None:
            self.anchors = np.concatenate([self._previews.anchors, self.truth_weights])
        self._equal = torch.as_tensor(series.equal_by_construction[keep])
        self._at, p_variance = self._points(self.truth_weights)
        self._n = len(truths)
        y = torch.as_tensor((truths - self._location) / self._scale)
        if grid is None:
            grid = OF_A_SCORE if self._own is None else OF_A_METRIC
        with_preview = self._previews is not None
        members = Members.of(grid, n_tasks, with_preview=with_preview)
        if self._n > _SCREENED:  # some of the truths tell which members are worth the cost of all
            some = torch.as_tensor(spread_subset(self.truth_weights, truths, _SCREENED))
            log_weights, _ = self._weigh(members, y, p_variance, some)
            best = log_weights.argsort(descending=True, stable=True)[: grid.most]
            members = members.take(best)
        log_weights, alpha = self._weigh(members, y, p_variance, torch.arange(self._n))
        best = log_weights.argsort(descending=True, stable=True)[: grid.kept(self._n)]
        best = best[log_weights[best] > log_weights[best[0]] - _NEGLIGIBLE]
        self._members, self._alpha = members.take(best), alpha[best]
        self.log_weights = _shared(log_weights, members.use_preview, best)
        self._set_variance_points(pending, p_variance)

    @classmethod
    def fit(cls, series: Series) -> TruthModel:
        """Fit to a `Series`; at least one preview or truth is needed for useful predictions."""
        with single_thread(), torch.no_grad():
            return cls(series)

    def _set_unit(self, truths: Array) -> None:
        if len(truths) >= _MIN_TRUTHS or self._previews is None:
            self._location, self._scale = location_and_scale(truths) if len(truths) else (0.0, 1.0)
        else:  # too few to know their spread: the previews' is the best guess
            self._scale = self._previews.scale
            self._location = float(truths.mean()) if len(truths) else self._previews.location
        self._preview_unit = 1.0
        if self._previews is not None and self._own is not None:
            self._preview_unit = self._previews.scale / self._scale

    def _points(self, weights: Array) -> tuple[Points, Tensor]:
        """Task weights as members see them, and the variances of the previews there."""
        p = variance = torch.zeros(len(weights), dtype=torch.float64)
        if self._previews is not None:
            p, variance = self._previews.predict(weights)
        unit = self._preview_unit
        return self._placed(weights, p * unit), variance * unit**2

    def _placed(self, weights: Array, p: Tensor) -> Points:
        if self._own is None:
            return Points(features(weights), p)
        own = torch.as_tensor(weights[:, self._own] * weights.shape[1])
        return Points(features(weights), p, own)

    @staticmethod
    def _covariance(members: Members, at: Points, p_variance: Tensor) -> Tensor:
        noise = members.noise[:, None] + JITTER * 10
        noise = noise + members.slope_mean.square()[:, None] * p_variance
        return members.kernel(at, at) + torch.diag_embed(noise)

    def _weigh(
        self, members: Members, y: Tensor, p_variance: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Log weights by the truths in `rows`, `S`, and dual weights, `S x n`."""
        at, equal = self._at.take(rows), self._equal[rows]
        covariance = self._covariance(members, at, p_variance[rows])
        residual = y[rows] - members.mean(at)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
        alpha = (inverse @ residual[..., None])[..., 0]
        precision = inverse.diagonal(dim1=-2, dim2=-1)
        each = 0.5 * (precision.log() - alpha.square() / precision)
        log_weights = members.log_prior + each[:, ~equal].sum(-1)
        without = members.use_preview == 0.0
        if equal.any() and without.any():
            # Together they have what the other truths give them, and share it by all truths.
            together = torch.logsumexp(log_weights[without], 0)
            of_all = log_weights[without] + each[without][:, equal].sum(-1)
            log_weights[without] = together + torch.log_softmax(of_all, 0)
        return log_weights, alpha

    def _set_variance_points(self, pending: Array, p_variance: Tensor) -> None:
        """Pending points count as truths at their predicted mean: only the variance shrinks."""
        self._at_var = self._at
        if len(pending):
            more, v = self._points(pending)
            self._at_var, p_variance = self._at.with_more(more), torch.cat([p_variance, v])
        if len(self._at_var.p):
            covariance = self._covariance(self._members, self._at_var, p_variance)
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
        return self._members_at(*self._points(weights))

    def _members_at(self, points: Points, p_variance: Tensor) -> tuple[Tensor, Tensor]:
        m = self._members
        mean, variance, slope = m.mean(points), m.variance(points), m.slope_mean[:, None]
        if len(self._at_var.p):
            kernel = m.kernel(self._at_var, points)
            variance = variance - (self._whiten @ kernel).square_().sum(1)
            if self._n:
                mean = mean + (self._alpha[:, None, :] @ kernel[:, : self._n])[:, 0]
                slope = slope + (m.slope_variance * (self._alpha @ self._at.p))[:, None]
        return mean, (variance + slope.square() * p_variance).clamp_min(1e-10)

    def means(self, weights: Array) -> Tensor:
        """The members' means alone, `S x q`, for a fraction of the cost."""
        p = torch.zeros(len(weights), dtype=torch.float64)
        if self._previews is not None:
            p = self._previews.mean(weights) * self._preview_unit
        points = self._placed(weights, p)
        mean = self._members.mean(points)
        if self._n:
            kernel = self._members.kernel(self._at, points)
            mean = mean + (self._alpha[:, None, :] @ kernel)[:, 0]
        return mean

    def moments(self, weights: Array) -> tuple[Tensor, Tensor]:
        """Mean and variance of the mixture at `q x T`: two tensors of length q, standardised."""
        return self._mixture(*self.members(weights))

    def _mixture(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """The moments of members' means and variances, `S x q`."""
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
            points, p_variance = self._points(weights)
            mean, variance = self._mixture(*self._members_at(points, p_variance))
            known = torch.zeros_like(variance)
            if self._previews is not None:
                slope = self._members.slope_mean
                if self._n:
                    slope = slope + self._members.slope_variance * (self._alpha @ self._at.p)
                unit = self._preview_unit**2
                known = self._previews.explained(p_variance / unit) * unit
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


def _shared(log_weights: Tensor, use_preview: Tensor, kept: Tensor) -> Tensor:
    """Log probabilities of the members that are kept.

    Those that use the preview have together what all of them have, and so have the others: many
    members of which each is a little likely are not to lose against a few.
    """
    found = log_weights[kept].clone()
    for use in (0.0, 1.0):
        rows = use_preview[kept] == use
        if rows.any():
            found[rows] += torch.logsumexp(log_weights[use_preview == use], 0)
            found[rows] -= torch.logsumexp(log_weights[kept][rows], 0)
    return torch.log_softmax(found, 0)


def _without_collapses(series: Series) -> Array:
    """The truths, larger is better, without what would set the scale of all others.

    Where the own task has no weight, a metric is low because nothing has taught it. It is not
    raised to the bulk of the others: a score of all metrics would take such weights for good ones.
    """
    truths = series.sign * series.truths
    taught = np.ones(len(truths), dtype=bool)
    if series.own is not None:
        taught = series.truth_weights[:, series.own] > 0.0
    if taught.any():
        bulk = truths[taught]
        truths[taught] = without_outliers(bulk, bulk)
        if len(bulk) >= _ENOUGH:
            truths[~taught] = without_outliers(truths[~taught], bulk, _UNTAUGHT_REACH)
    return np.asarray(truths)
