"""The posterior of a score of the tasks' metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri
from scipy.stats import qmc

from optuna_merge.surrogate._truth import TruthModel

Array = npt.NDArray[np.float64]

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
        self.standard_draws = ndtri(np.clip(sobol, 1e-6, 1 - 1e-6))
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

    def lookahead(self, weights: Array) -> tuple[Array, Array, Array]:
        """`TruthModel.lookahead` of the tasks' metrics, three `q x T` arrays."""
        mean, moved, left = zip(*(m.lookahead(weights) for m in self.models))
        return np.stack(mean, axis=-1), np.stack(moved, axis=-1), np.stack(left, axis=-1)

    def means(self, weights: Array) -> Array:
        """Means of the tasks' metrics, `q x T`."""
        return np.stack([m.predict_mean(weights) for m in self.models], axis=-1)

    def metric_draws(self, weights: Array) -> Array:
        """Draws of the tasks' metrics, `n_draws x q x T`."""
        mean, std = zip(*(m.predict(weights) for m in self.models))
        spread: Array = np.stack(std, axis=-1) * self.standard_draws[:, None, :]
        return np.stack(mean, axis=-1) + spread

    def predict(self, weights: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the true score at `q x T`: two arrays of length q."""
        scores = self.score(self.metric_draws(np.atleast_2d(weights)))
        return scores.mean(axis=0), scores.std(axis=0)
