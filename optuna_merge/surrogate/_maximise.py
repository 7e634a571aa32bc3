"""The search for the weights with the largest acquisition value."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from optuna_merge.surrogate._acquisition import Acquisition
from optuna_merge.surrogate._simplex import candidates, neighbours, raised

Array = npt.NDArray[np.float64]

_POLISH = ((0.05, 0.02), (0.01, 0.003))
_SAME = 1e-4
NEAR = 0.03
"""Largest difference of a weight at which a preview says what the one beside it has said."""


def maximise(
    acquisition: Acquisition,
    n_free: int,
    embed: Callable[[Array], Array],
    free: Callable[[Array], Array],
    visited: Array,
    n: int,
    rng: np.random.Generator,
    *,
    previewed: Array | None = None,
) -> Array:
    """The point of the simplex with the largest acquisition value that was not visited yet.

    About `n` candidates are scored, those among them that raise one task of the best truth, then
    small neighbourhoods of the best four, twice.

    Args:
        acquisition: Function of full weights, `q x T`.
        n_free: Number F of weights to choose.
        embed: From points of the simplex over the free weights, `q x F`, to full weights.
        free: The way back.
        visited: Full weights not to be suggested again, `k x T`.
        n: Number of candidates.
        rng: Source of the candidates.
        previewed: Full weights with a preview that has an error, `p x T`: within `NEAR` of these
            nothing is suggested as long as there is anything else.
    """
    best = np.argsort(-acquisition.merit(acquisition.anchors), kind="stable")[:5]
    points = candidates(n_free, n, free(acquisition.anchors[best]), rng)
    truths = acquisition.truth_weights
    if len(truths):
        best_truth = truths[[int(np.argmax(acquisition.merit(truths)))]]
        points = np.concatenate([points, raised(free(best_truth)[0])])
    values = acquisition(embed(points))
    for steps in _POLISH:
        top = points[np.argsort(-values, kind="stable")[:4]]
        near = np.concatenate([neighbours(w, 100, steps, rng) for w in top])
        points = np.concatenate([points, near])
        values = np.concatenate([values, acquisition(embed(near))])
    order = np.argsort(-values, kind="stable")
    known = np.zeros(len(order))  # what is new comes first
    for others, gap in ((visited, _SAME), (previewed, NEAR)):
        if others is not None and len(others):
            known += cKDTree(others).query(embed(points[order]), p=np.inf)[0] <= gap
    return np.asarray(points[order[np.argmin(known)]])
