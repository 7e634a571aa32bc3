from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from optuna_merge.goals import below_nadir, hypervolume, layers, non_dominated, volume_alone

NAN = math.nan


@pytest.mark.parametrize(
    "points, front",
    [
        ([[1, 2], [2, 1], [0, 0]], [0, 1]),
        ([[1, 1], [1, 1], [1, 0]], [0, 1]),  # equals don't dominate each other
        ([[1, 1], [1, 2], [2, 1], [2, 2]], [3]),
        ([[NAN, 9], [1, 1]], [1]),
        ([[NAN, 9]], []),
        ([[3], [1], [3]], [0, 2]),
    ],
)
def test_non_dominated(points: list[list[float]], front: list[int]) -> None:
    found = non_dominated(np.array(points, dtype=float))
    assert np.flatnonzero(found).tolist() == front


def test_non_dominated_is_what_its_definition_says() -> None:
    points = np.random.default_rng(0).integers(0, 5, (200, 3)).astype(float)
    expected = [not any((q >= p).all() and (q > p).any() for q in points) for p in points]
    assert non_dominated(points).tolist() == expected


def test_layers_hold_each_point_once_and_nan_last() -> None:
    points = np.array([[0, 0], [2, 2], [NAN, 3], [1, 3], [1, 1], [0, 0]], dtype=float)
    assert [layer.tolist() for layer in layers(points)] == [[1, 3], [4], [0, 5], [2]]


def test_hypervolume_is_the_volume_of_the_union_of_boxes() -> None:
    points = np.random.default_rng(1).integers(0, 6, (8, 3)).astype(float)
    reference = np.array([1.0, 0.0, 2.0])
    cells = itertools.product(range(6), repeat=3)
    covered = sum(
        any(
            (np.array(cell) >= reference).all() and (p >= np.array(cell) + 1).all() for p in points
        )
        for cell in cells
    )
    assert hypervolume(points, reference) == pytest.approx(covered)
    assert hypervolume(points[:1], np.array([9.0, 9.0, 9.0])) == 0.0
    assert volume_alone(np.array([[2.0, 5.0], [0.0, 9.0]]), np.array([1.0, 1.0])).tolist() == [
        4,
        0,
    ]


def test_the_reference_is_a_tenth_of_the_range_below_the_worst() -> None:
    assert below_nadir(np.array([[1.0, 5.0], [2.0, 5.0]])) == pytest.approx([0.9, 4.9])
