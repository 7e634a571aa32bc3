"""Some of many points, spread over the simplex."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_MAX_SPREAD = 2000


def spread_subset(weights: Array, values: Array, n: int) -> npt.NDArray[np.intp]:
    """Indices of the `n` most informative points, ascending; deterministic.

    A third are the best, a third the most recent, the rest the farthest from all chosen before (of
    thousands of points those of every second, fourth, ... number).
    """
    if len(values) <= n:
        return np.arange(len(values))
    best = np.argsort(-values, kind="stable")[: n // 3]
    chosen = np.union1d(best, np.arange(len(values) - n // 3, len(values)))
    stride = 1
    while len(values) > stride * max(_MAX_SPREAD, 4 * n):
        stride *= 2
    others = np.setdiff1d(np.arange(0, len(values), stride), chosen)
    points = weights[others]
    square = np.einsum("nt,nt->n", points, points)
    distance = np.full(len(others), np.inf)
    for centre in weights[chosen]:
        np.minimum(distance, square + centre @ centre - 2 * points @ centre, out=distance)
    picked = []
    for _ in range(n - len(chosen)):
        i = int(np.argmax(distance))
        picked.append(i)
        np.minimum(distance, square + square[i] - 2 * points @ points[i], out=distance)
        distance[i] = -np.inf
    return np.sort(np.concatenate([chosen, others[picked]]))
