from __future__ import annotations

import itertools
import math

import numpy as np
import optuna
import pytest

from optuna_merge.goals import (
    below_nadir,
    estimated_front,
    hypervolume,
    layers,
    non_dominated,
    volume_alone,
)
from optuna_merge.samplers import PreviewSampler
from optuna_merge.trials import suggest_weights

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


def two_tasks(directions: list[str], n: int = 14) -> optuna.Study:
    """Concave metrics sqrt(w): every weighting is on the front; previews are too low."""
    study = optuna.create_study(directions=directions, sampler=PreviewSampler(["a", "b"], seed=0))

    def run(trial: optuna.Trial) -> float | list[float]:
        signs = [1.0 if d == "maximize" else -1.0 for d in directions * 2]
        metrics = [
            s * math.sqrt(w) for s, w in zip(signs, suggest_weights(trial, ["a", "b"]).values())
        ]
        for task, metric in zip("ab", metrics):
            trial.set_user_attr(f"preview_{task}", 0.8 * metric - 0.1)
        if trial.number % 2:
            raise optuna.TrialPruned
        for task, metric in zip("ab", metrics):
            trial.set_user_attr(f"truth_{task}", metric)
        return metrics if len(directions) > 1 else sum(metrics)

    study.optimize(run, n_trials=n)
    return study


@pytest.mark.parametrize(
    "directions", [["maximize"], ["minimize"], ["maximize", "maximize"], ["minimize", "maximize"]]
)
def test_estimated_front(directions: list[str]) -> None:
    front = estimated_front(two_tasks(directions), ["a", "b"], max_points=20)
    signs = np.array([1.0 if d == "maximize" else -1.0 for d in directions * 2][:2])
    mean = np.array([list(p.mean.values()) for p in front])
    weights = np.array([list(p.weights.values()) for p in front])
    assert len(front) == 20
    assert non_dominated(signs * mean).all()
    assert np.ptp(weights[:, 0]) > 0.9, "all of the front, not one end of it"
    assert (np.diff(weights[:, 0]) < 0).all()
    errors = np.abs(mean - signs * np.sqrt(weights))
    std = np.array([list(p.std.values()) for p in front])
    assert np.median(errors) < 0.05
    assert (std > 0).all()


def test_an_estimated_front_keeps_constraints() -> None:
    study = two_tasks(["maximize"])
    front = estimated_front(study, ["a", "b"], constraints=lambda m: 0.8 - m[..., :1])
    assert front
    assert min(p.mean["a"] for p in front) >= 0.8
    assert estimated_front(study, ["a", "b"], constraints=lambda m: 2 - m[..., :1]) == []


def test_an_estimated_front_needs_metrics() -> None:
    study = optuna.create_study(study_name="s")
    with pytest.raises(ValueError, match="study 's' has no preview and no truth of task"):
        estimated_front(study)
    with pytest.raises(ValueError, match="no preview and no truth of task 'a'"):
        estimated_front(two_tasks(["maximize"], 4), ["a", "other"])
