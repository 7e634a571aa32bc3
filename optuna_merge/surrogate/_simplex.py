"""Points on the simplex: the start-up design and the candidates of an acquisition function."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from optuna_merge.trials import MIN_WEIGHT

Array = npt.NDArray[np.float64]

_MAX_AXIAL = 4  # tasks; of more the axial points alone would be many
_STEPS = (0.3, 0.1, 0.03, 0.01)
_RAISES = (1.5, 2.0)


def to_simplex(points: Array) -> Array:
    """Rows clipped at zero and divided by their sum, small weights dropped; `n x T`.

    The vectorised companion of `optuna_merge.trials.canonical_weights`, up to rounding.
    """
    w = np.maximum(points, 0.0)
    total = w.sum(axis=1, keepdims=True)
    w = np.divide(w, total, out=np.full_like(w, 1.0 / w.shape[1]), where=total > 0)
    w[w < MIN_WEIGHT] = 0.0
    return np.asarray(w / w.sum(axis=1, keepdims=True))


def startup_size(n_tasks: int) -> int:
    """Points of the design after which the model of the previews takes over."""
    return 2 * n_tasks + 1 if 3 <= n_tasks <= _MAX_AXIAL else n_tasks + 4


def startup_design(n_tasks: int, n: int, seed: int) -> Array:
    """Uniform weights, the vertices, the axial points, then Sobol's sequence; `n x n_tasks`.

    Axial points are half-way from uniform weights to each vertex (Cornell, Experiments with
    Mixtures, 2002): they tell how each task's metric saturates in its own weight. Of more than
    four tasks they are left out. Sobol coordinates become exponential variates, which are uniform
    on the simplex when normalised. Every other point keeps only its 2, 3, ... largest weights, so
    that the faces are covered too. A longer design begins with the shorter one.
    """
    from scipy.stats import qmc  # half of the room's import time

    corners = np.concatenate([np.full((1, n_tasks), 1.0 / n_tasks), np.eye(n_tasks)])
    if 1 < n_tasks <= _MAX_AXIAL:
        corners = np.concatenate([corners, (corners[:1] + corners[1:]) / 2.0])
    n_sobol = max(n - len(corners), 0)
    if n_sobol == 0 or n_tasks == 1:
        return np.resize(corners, (n, n_tasks))
    # Every other point of ONE Sobol sequence would fill only half of the cube: two sequences.
    half = (n_sobol + 1) // 2
    points = np.empty((2 * half, n_tasks))
    for i in (0, 1):
        cube = qmc.Sobol(n_tasks, seed=np.random.default_rng([seed, i])).random_base2(
            (half - 1).bit_length()
        )
        points[i::2] = -np.log1p(-np.clip(cube[:half], 1e-9, 1 - 1e-9))
    order = np.argsort(-points, axis=1)
    for i in range(1, len(points), 2):
        support = 2 + (i // 2) % max(n_tasks - 2, 1)
        points[i, order[i, support:]] = 0.0
    return np.concatenate([corners, to_simplex(points)])[:n]


def candidates(n_tasks: int, n: int, incumbents: Array, rng: np.random.Generator) -> Array:
    """About `n` points: vertices, uniform, edge centres, Dirichlet, sparse, near incumbents."""
    fixed = np.concatenate([np.eye(n_tasks), np.full((1, n_tasks), 1.0 / n_tasks)])
    exponential = rng.exponential(size=(2 * (n // 5), n_tasks))
    half = len(exponential) // 2
    support = rng.integers(1, n_tasks + 1, size=(half, 1))
    rank = rng.permuted(np.tile(np.arange(n_tasks), (half, 1)), axis=1)
    exponential[:half] *= rank < support
    local = [neighbours(w, 3 * n // (5 * len(incumbents)), _STEPS, rng) for w in incumbents]
    return np.concatenate([fixed, to_simplex(exponential), *local])


def raised(weights: Array) -> Array:
    """Points with more weight on one task each: times 1.5 and times 2, then divided by the sum.

    The worst task of a good point, or the one that violates a constraint most, is one of them. A
    task without weight is given that of uniform weights. From `T` weights to `2 T x T`.
    """
    n_tasks = len(weights)
    base = np.where(weights > 0.0, weights, 1.0 / n_tasks)
    points = np.tile(weights, (len(_RAISES) * n_tasks, 1))
    tasks = np.tile(np.arange(n_tasks), len(_RAISES))
    points[np.arange(len(points)), tasks] = np.repeat(_RAISES, n_tasks) * base[tasks]
    return to_simplex(points)


def neighbours(centre: Array, n: int, steps: tuple[float, ...], rng: np.random.Generator) -> Array:
    """`n` perturbations of one point: all weights or few, some weights set to zero."""
    t = len(centre)
    step = rng.choice(steps, size=(n, 1))
    moved = rng.random((n, t)) < rng.choice([1.0, min(1.0, 2.0 / t)], size=(n, 1))
    points = centre + step * moved * rng.normal(size=(n, t))
    points[rng.random((n, t)) < 0.15] = 0.0
    points[points.max(axis=1) <= 0.0] = centre
    return to_simplex(points)
