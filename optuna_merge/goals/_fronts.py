"""Pareto fronts: which points nothing beats in all objectives, and how much they dominate.

Points are arrays `n x m`, one column per objective. In this module larger is better: multiply
what is minimised by -1.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from optuna_merge._base.lazy import need

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_MARGIN = 0.1


def non_dominated(points: Array) -> Mask:
    """Which points no other one dominates: is as good everywhere and better somewhere.

    Equal points don't dominate each other. A point with NaN is dominated.

    Examples:
        >>> non_dominated(np.array([[0.9, 0.5], [0.7, 0.7], [0.6, 0.6]]))
        array([ True,  True, False])
    """
    found: Mask = np.asarray(np.isfinite(points).all(axis=1))
    # The best sums first: nothing after a point dominates it, and most fall to the first ones.
    order = np.argsort(-np.where(found, np.nan_to_num(points).sum(axis=1), -np.inf), kind="stable")
    for i in order:
        if found[i]:
            worse = (points <= points[i]).all(axis=1) & (points < points[i]).any(axis=1)
            found &= ~worse
    return found


def layers(points: Array) -> Iterator[npt.NDArray[np.intp]]:
    """Indices of the non-dominated points, then of those among the rest, and so on.

    Points with NaN come last, in one layer.
    """
    left = np.arange(len(points))
    while len(left):
        front = non_dominated(points[left])
        if not front.any():
            front[:] = True
        yield left[front]
        left = left[~front]


def volume_alone(points: Array, reference: Array) -> Array:
    """Hypervolume that each point dominates on its own, seen from the reference point; `n`."""
    return np.asarray(np.prod(np.maximum(points - reference, 0.0), axis=1))


def hypervolume(points: Array, reference: Array) -> float:
    """Volume between the reference point and the front of the points.

    Points that are not better than the reference in all objectives add nothing.

    Examples:
        >>> hypervolume(np.array([[2.0, 1.0], [1.0, 2.0]]), np.zeros(2))
        3.0
    """
    need("botorch", "pareto", "a hypervolume")
    import torch
    from botorch.utils.multi_objective.hypervolume import Hypervolume

    better = points[(points > reference).all(axis=1)]
    if not len(better):
        return 0.0
    front = np.unique(better[non_dominated(better)], axis=0)
    return float(Hypervolume(torch.as_tensor(reference)).compute(torch.as_tensor(front)))


def below_nadir(points: Array) -> Array:
    """A reference point for fronts between the points given, such as single-task solutions.

    It is the worst value of each objective among them, less a tenth of the range: with the worst
    values themselves the ends of the front would count nothing.
    """
    worst, best = points.min(axis=0), points.max(axis=0)
    return np.asarray(worst - _MARGIN * np.where(best > worst, best - worst, 1.0))
