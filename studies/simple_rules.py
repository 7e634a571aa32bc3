"""What a sceptic tries first: rules that choose task weights without any preview.

Needs NumPy and SciPy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy.interpolate import PchipInterpolator

Array = npt.NDArray[np.float64]

FINE = 20_000
"""Points of the simplex among which a rule looks for its best weights."""


def doubled(weights: Sequence[float], worst: int) -> list[float]:
    """The weights with the share of the worst task doubled against the others', sum 1."""
    found = np.array(weights, dtype=float)
    found[worst] *= 2
    return list((found / found.sum()).tolist())


def own_weight_curves(alone: Array, uniform: Array, weights: Array) -> Array:
    """Each task's metric as a function of its own weight alone, through what every study has.

    The curve of a task goes through its mean metric in the other tasks' runs (own weight 0), its
    metric at uniform weights, and its metric in its own run (own weight 1): a monotone cubic where
    these three are in order (Fritsch and Carlson 1980, SciPy's `PchipInterpolator`).

    Args:
        alone: `T x T`; row i holds all metrics of the finetune on task i alone.
        uniform: `T`; all metrics of the finetune at uniform weights.
        weights: `n x T`.

    Returns:
        Metrics, `n x T`.
    """
    n_tasks = len(uniform)
    columns = []
    for task in range(n_tasks):
        others = np.delete(alone[:, task], task).mean()
        values = [others, uniform[task], alone[task, task]]
        columns.append(PchipInterpolator([0, 1 / n_tasks, 1], values)(weights[:, task]))
    return np.stack(columns, axis=1)


def proportional(examples: Sequence[int]) -> list[float]:
    """Weights in proportion to the tasks' training examples: concatenated data, in effect."""
    return [count / sum(examples) for count in examples]


def fine_points(n_tasks: int, seed: int = 0) -> Array:
    """Random points of the simplex, uniform weights and the tasks alone among them."""
    drawn = np.random.default_rng(seed).dirichlet(np.ones(n_tasks), FINE)
    return np.concatenate([np.eye(n_tasks), np.full((1, n_tasks), 1 / n_tasks), drawn])


def in_turn(scores: Array) -> Iterator[int]:
    """Places from the best score to the worst."""
    yield from np.argsort(-scores, kind="stable").tolist()


def beyond_own_weight(preview: Array, truth: Array, own: Array, degree: int = 3) -> float:
    """Partial correlation of a task's previews and truths, given the task's own weight.

    Pearson's correlation of what least squares polynomials of the own weight leave of either.
    NaN where one of the two leaves nothing, or there are too few points to tell.

    Args:
        preview: `n`.
        truth: `n`.
        own: The task's weights, `n`.
        degree: Of the polynomials; less where the weights take fewer values.
    """
    design = _powers(own, degree)
    left = [_left_over(y, design) for y in (preview, truth)]
    if len(own) - design.shape[1] < 3 or min(map(np.std, left)) < 1e-9:
        return float("nan")
    return float(np.corrcoef(left[0], left[1])[0, 1])


def explained_by_own_weight(truth: Array, own: Array, degree: int = 3) -> float:
    """Share of the variance of a task's truths that a polynomial of its own weight explains."""
    left = _left_over(truth, _powers(own, degree))
    return float(1 - left.var() / truth.var()) if truth.var() > 0 else float("nan")


def _powers(own: Array, degree: int) -> Array:
    """The powers of the own weight up to a degree, fewer where it takes few values."""
    values = len(np.unique(np.round(own, 6)))
    return np.vander(own, min(degree, values - 1) + 1)


def _left_over(values: Array, design: Array) -> Array:
    """What a least squares fit leaves of values."""
    return np.asarray(values - design @ np.linalg.lstsq(design, values, rcond=None)[0])
