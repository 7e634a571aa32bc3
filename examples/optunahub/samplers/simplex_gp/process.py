"""A Gaussian process over shares that sum to one, and its log expected improvement."""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.special

_JITTER = 1e-8
_MAX_VALUES = 300  # of the model; of more the best and the latest are kept


class SimplexProcess:
    """A Gaussian process with a Matern 5/2 kernel, a length scale a share, and noise.

    Values are standardised inside; larger is better. Length scales and noise are those of the
    largest posterior density.
    """

    def __init__(self, shares: np.ndarray, values: np.ndarray) -> None:
        kept = _kept(values)
        self._x = shares[kept]
        low, high = np.quantile(values, [0.25, 0.75])
        floor = low - 6.0 * (high - low)  # one collapse must not set the scale
        clipped = np.maximum(values[kept], floor) if high > low else values[kept]
        self._location = float(clipped.mean())
        self._scale = max(float(clipped.std()), 1e-12 * (1.0 + abs(self._location)))
        self._y = (clipped - self._location) / self._scale
        n_shares = self._x.shape[1]
        start = np.concatenate([np.zeros(n_shares), [math.log(0.05)]])
        found = scipy.optimize.minimize(
            self._loss, start, method="L-BFGS-B", bounds=[(-3.0, 3.0)] * n_shares + [(-9.0, 0.0)]
        )
        self._set(found.x if np.isfinite(found.fun) else start)

    def _kernel(self, a: np.ndarray, b: np.ndarray, theta: np.ndarray) -> np.ndarray:
        # Scaled so that two random points of the simplex are about 1 apart, however many shares.
        scaled = math.sqrt(self._x.shape[1] / 2) * np.exp(-theta[:-1])
        squares = ((a[:, None] - b) ** 2 * scaled**2).sum(-1)
        distances = np.sqrt(5.0 * squares)
        return (1.0 + distances + 5.0 / 3.0 * squares) * np.exp(-distances)

    def _factor(self, theta: np.ndarray) -> np.ndarray:
        kernel = self._kernel(self._x, self._x, theta)
        kernel[np.diag_indices_from(kernel)] += np.exp(theta[-1]) + _JITTER
        return scipy.linalg.cholesky(kernel, lower=True)

    def _loss(self, theta: np.ndarray) -> float:
        try:
            factor = self._factor(theta)
        except scipy.linalg.LinAlgError:
            return 1e10
        white = scipy.linalg.solve_triangular(factor, self._y, lower=True)
        prior = 0.5 * float((theta[:-1] ** 2).sum()) + 0.125 * float((theta[-1] + 4.0) ** 2)
        return 0.5 * float(white @ white) + float(np.log(np.diag(factor)).sum()) + prior

    def _set(self, theta: np.ndarray) -> None:
        self._theta = theta
        self._chol = self._factor(theta)
        self._alpha = scipy.linalg.cho_solve((self._chol, True), self._y)

    def with_pending(self, shares: np.ndarray) -> SimplexProcess:
        """The same process after points under way, as if they came out as expected."""
        if len(shares):
            mean, _ = self._predict(shares)
            self._x = np.concatenate([self._x, shares])
            self._y = np.concatenate([self._y, mean])
            self._set(self._theta)
        return self

    def _predict(self, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cross = self._kernel(shares, self._x, self._theta)
        white = scipy.linalg.solve_triangular(self._chol, cross.T, lower=True)
        return cross @ self._alpha, np.sqrt(np.maximum(1.0 - (white**2).sum(0), 1e-12))

    def predict(self, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of what the values are without noise."""
        mean, deviation = self._predict(shares)
        return self._location + self._scale * mean, self._scale * deviation

    def log_improvement(self, shares: np.ndarray) -> np.ndarray:
        """Log of the expected improvement over the best expected value so far."""
        best = self._predict(self._x)[0].max()
        mean, deviation = self._predict(shares)
        return np.log(deviation) + _log_h((mean - best) / deviation)


def _kept(values: np.ndarray) -> np.ndarray:
    if len(values) <= _MAX_VALUES:
        return np.arange(len(values))
    best = np.argsort(-values, kind="stable")[: _MAX_VALUES // 2]
    latest = np.setdiff1d(np.arange(len(values)), best)[-(_MAX_VALUES - len(best)) :]
    return np.sort(np.concatenate([best, latest]))


def _log_h(z: np.ndarray) -> np.ndarray:
    """log(phi(z) + z Phi(z)), far into the left tail."""
    log_phi = -0.5 * z**2 - 0.5 * math.log(2.0 * math.pi)
    near = np.maximum(z, -10.0)
    ratio = near * np.exp(scipy.special.log_ndtr(near) + 0.5 * near**2) * math.sqrt(2.0 * math.pi)
    tail = -2.0 * np.log(np.maximum(-z, 10.0))
    return log_phi + np.where(z > -10.0, np.log1p(np.maximum(ratio, -1.0 + 1e-12)), tail)
