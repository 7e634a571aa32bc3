from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import qmc

from optuna_merge.surrogate import raised, startup_design, startup_size, to_simplex
from optuna_merge.surrogate._simplex import candidates, neighbours
from optuna_merge.trials import MIN_WEIGHT, canonical_weights


def assert_on_simplex(points: np.ndarray) -> None:
    np.testing.assert_allclose(points.sum(axis=1), 1.0, atol=1e-12)
    assert ((points == 0.0) | (points >= MIN_WEIGHT - 1e-12)).all()


def test_to_simplex_agrees_with_canonical_weights() -> None:
    raw = np.random.default_rng(0).exponential(size=(200, 6)) ** 4
    raw[0] = 0.0
    expected = [canonical_weights(row) for row in raw.tolist()]
    np.testing.assert_allclose(to_simplex(raw), expected, atol=1e-12)


@pytest.mark.parametrize("n_tasks", [1, 2, 3, 8, 32])
@pytest.mark.parametrize("n", [1, 5, 70])
def test_startup_design(n_tasks: int, n: int) -> None:
    design = startup_design(n_tasks, n, seed=0)
    assert design.shape == (n, n_tasks)
    assert_on_simplex(design)
    np.testing.assert_array_equal(design[0], 1.0 / n_tasks)
    corners = min(n - 1, n_tasks)
    np.testing.assert_array_equal(design[1 : 1 + corners], np.eye(n_tasks)[:corners])
    np.testing.assert_array_equal(design, startup_design(n_tasks, 2 * n, seed=0)[:n])


@pytest.mark.parametrize("n_tasks", [2, 3, 4])
def test_of_few_tasks_the_axial_points_follow(n_tasks: int) -> None:
    axial = startup_design(n_tasks, 2 * n_tasks + 1, seed=0)[1 + n_tasks :]
    expected = (np.eye(n_tasks) + 1 / n_tasks) / 2
    np.testing.assert_allclose(axial, expected)
    assert startup_size(n_tasks) >= 2 * n_tasks + 1


def test_of_many_tasks_the_design_is_short() -> None:
    assert startup_size(16) == 20
    points = startup_design(16, 20, seed=0)[17:]
    assert np.ptp(points.max(axis=1)) > 0.0  # none of them axial


def test_startup_design_reaches_faces_and_interior_evenly() -> None:
    design = startup_design(4, 9 + 128, seed=3)[9:]
    interior = design[(design > 0).all(axis=1)]
    supports = (design > 0).sum(axis=1)
    assert {2, 3, 4} == set(supports.tolist())
    assert 55 <= len(interior) <= 64
    np.testing.assert_allclose(interior.mean(axis=0), 0.25, atol=0.03)
    # more even than independent uniform points, by the discrepancy of one weight's distribution
    # function F(w) = 1 - (1 - w)^3
    uniform = np.random.default_rng(0).dirichlet(np.ones(4), len(interior))
    low, high = (
        np.mean([qmc.discrepancy(1 - (1 - p[:, [i]]) ** 3) for i in range(4)])
        for p in (interior, uniform)
    )
    assert low < high
    assert not np.array_equal(design, startup_design(4, 9 + 128, seed=4)[9:])


def test_candidates_cover_vertices_faces_and_incumbents() -> None:
    rng = np.random.default_rng(0)
    incumbent = np.array([[0.2, 0.3, 0.5, 0.0, 0.0]])
    points = candidates(5, 1500, incumbent, rng)
    assert_on_simplex(points)
    assert 1400 < len(points) < 1600
    for vertex in np.eye(5):
        assert (points == vertex).all(axis=1).any()
    assert set((points > 0).sum(axis=1).tolist()) == {1, 2, 3, 4, 5}
    assert np.abs(points - incumbent).max(axis=1).min() < 0.02


def test_neighbours_stay_near_and_on_the_simplex() -> None:
    centre = np.array([0.5, 0.5, 0.0])
    points = neighbours(centre, 500, (0.01,), np.random.default_rng(0))
    assert_on_simplex(points)
    kept = points[(points[:, :2] > 0).all(axis=1)]
    assert np.abs(kept - centre).max() < 0.06
    assert (points[:, 2] == 0).mean() > 0.3


def test_raised_points_have_one_task_with_more_weight() -> None:
    weights = np.array([0.2, 0.3, 0.5, 0.0])
    points = raised(weights)
    assert_on_simplex(points)
    assert len(points) == 8
    ratios = points[:, :3] / weights[:3]
    for row, (factor, task) in enumerate((f, t) for f in (1.5, 2.0) for t in range(3)):
        at = ratios[row + row // 3]  # the fourth task's are between
        others = np.delete(at, task)
        np.testing.assert_allclose(at[task] / others, factor)
    np.testing.assert_allclose(points[3], np.array([0.2, 0.3, 0.5, 0.375]) / 1.375)
    np.testing.assert_allclose(points[7], np.array([0.2, 0.3, 0.5, 0.5]) / 1.5)
