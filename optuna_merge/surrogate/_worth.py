"""What another preview is worth: how much better it may make the next finetune.

The next finetune is that of the preview with the largest expected improvement of its truth. A
preview at other weights moves the expected truth there, and its own improvement with it: what it
is worth is the expected gain of the largest one (the knowledge gradient of Frazier et al. 2009,
one preview ahead). So a preview is worth nothing where previews have shown what they can, where
the truth can't be the best, or where the truths have shown that previews say nothing.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from optuna_merge.surrogate._acquisition import Improvement

Array = npt.NDArray[np.float64]

_SCREENED = 200  # previews of the largest expected quality
_COMPARED = 32  # of them, those whose finetunes promise most
_TIE = -14.0  # log of the part that the improvement itself has: where nothing is left to learn


class PreviewWorth:
    """Log of what a preview is worth, to be maximised as an `Acquisition`.

    Args:
        improvement: What a finetune promises.
        candidates: Weights of the previews that may be promoted, `k x T`. Without any it is the
            improvement itself that is maximised.
    """

    def __init__(self, improvement: Improvement, candidates: Array) -> None:
        self._improvement = improvement
        self.anchors, self.truth_weights = improvement.anchors, improvement.truth_weights
        self._best = -np.inf
        if len(candidates) > _SCREENED:
            order = np.argsort(-improvement.merit(candidates), kind="stable")
            candidates = candidates[order[:_SCREENED]]
        if len(candidates):
            order = np.argsort(-improvement(candidates), kind="stable")
            top = candidates[order[:_COMPARED]]
            self._best = float(_log_mean(improvement.after_previews(top)).max())

    def __call__(self, weights: Array) -> Array:
        """Of each row of `q x T`, in the unit of the improvement."""
        after = self._improvement.after_previews(weights)
        mean = _log_mean(after)
        if not np.isfinite(self._best):
            return mean
        with np.errstate(divide="ignore"):  # log 0 where a preview raises nothing
            gains = after + np.log(-np.expm1(np.minimum(self._best - after, 0.0)))
        return np.asarray(np.logaddexp(_log_mean(gains), mean + _TIE))

    def merit(self, weights: Array) -> Array:
        """Expected quality of each row of `q x T`."""
        return self._improvement.merit(weights)

    def share(self, weights: Array) -> float:
        """The worth of the best row, in units of the next finetune's expected improvement.

        Or of what the truth that the preview leaves uncertain would bring by itself, if that is
        more: where finetunes promise next to nothing, a preview is not worth it for promising a
        large part of that.
        """
        if not np.isfinite(self._best):
            return math.inf
        values = self(weights)
        best = int(np.argmax(values))
        unit = max(self._best, self._improvement.level(weights[[best]]))
        return math.exp(min(float(values[best]) - unit, 700.0))


def _log_mean(logs: Array) -> Array:
    return np.asarray(np.logaddexp.reduce(logs, axis=0) - np.log(len(logs)))
