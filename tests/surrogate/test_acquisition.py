from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from botorch.acquisition import LogExpectedImprovement
from botorch.models import SingleTaskGP

from optuna_merge.surrogate import (
    ScoreImprovement,
    ScoreModel,
    TruthImprovement,
    TruthModel,
    maximise,
)
from optuna_merge.surrogate._acquisition import (
    FrontImprovement,
    chebyshev,
    log_expected_improvement,
)
from optuna_merge.trials import Series


def test_log_expected_improvement_equals_botorch() -> None:
    x = torch.rand(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gp = SingleTaskGP(x, x.sum(1, keepdim=True).sin())
    grid = torch.linspace(0, 3, 40, dtype=torch.float64)[:, None].expand(-1, 2)
    posterior = gp.posterior(grid)
    for best in (0.2, 1.0, 30.0):
        expected = LogExpectedImprovement(gp, best_f=best)(grid[:, None, :])
        ours = log_expected_improvement(
            posterior.mean[:, 0], posterior.variance[:, 0], torch.tensor(best)
        )
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


def test_log_expected_improvement_orders_hopeless_points() -> None:
    mean = torch.linspace(-1e5, 5.0, 2000, dtype=torch.float64)
    value = log_expected_improvement(mean, torch.ones(()).double(), torch.zeros(()).double())
    assert value.isfinite().all()
    assert (value.diff() > 0).all()
    assert value[-1].item() == pytest.approx(math.log(5.0), abs=1e-3)


def parabola(w: np.ndarray, best: list[float]) -> np.ndarray:
    return -np.square(w - np.array(best)).sum(axis=1)


def search(acquisition: object, visited: np.ndarray, seed: int = 0) -> np.ndarray:
    identity = lambda w: w  # noqa: E731
    rng = np.random.default_rng(seed)
    return maximise(acquisition, 3, identity, identity, visited, 1500, rng)  # type: ignore[arg-type]


@pytest.mark.parametrize("best", [[0.5, 0.3, 0.2], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
def test_the_suggestion_is_near_the_optimum_and_new(best: list[float]) -> None:
    w = np.random.default_rng(0).dirichlet(np.ones(3), 25)
    y = parabola(w, best)
    acquisition = TruthImprovement(TruthModel.fit(Series(w, 0.5 * y - 1, w[:6], y[:6])))
    point = search(acquisition, w)
    assert np.abs(point - best).max() < 0.05
    again = search(acquisition, np.concatenate([w, point[None]]))
    assert np.abs(point - again).max() > 1e-4
    assert np.array_equal(point, search(acquisition, w))


def test_score_improvement_follows_the_score_and_its_direction() -> None:
    w = np.random.default_rng(0).dirichlet(np.ones(3), 30)
    models = [
        TruthModel.fit(Series(w, np.sqrt(w[:, i]), w[:10], np.sqrt(w[:10, i]))) for i in range(3)
    ]
    worst = ScoreModel(models, lambda m: m.min(axis=-1))
    assert np.abs(search(ScoreImprovement(worst, 1.0), w) - 1 / 3).max() < 0.05
    first = ScoreModel(models, lambda m: -m[..., 0])
    assert search(ScoreImprovement(first, -1.0), w)[0] > 0.85


def test_front_improvement_is_positive_only_beyond_the_front() -> None:
    w = np.eye(3).repeat(2, axis=0) * 0.9 + 1 / 30
    objectives = [w[:, 0], w[:, 1]]
    models = [TruthModel.fit(Series(w, y, w, y)) for y in objectives]
    acquisition = FrontImprovement(models, np.random.default_rng(0).standard_normal((64, 2)))
    between, bad = np.array([[0.5, 0.5, 0.0]]), np.array([[0.0, 0.0, 1.0]])
    assert acquisition(between)[0] > 10 * acquisition(bad)[0]
    assert search(acquisition, w)[2] < 0.05


def test_chebyshev_prefers_what_it_is_told() -> None:
    objectives = np.array([[1.0, 0.0], [0.0, 10.0], [0.5, 5.0]])
    low, high = objectives.min(axis=0), objectives.max(axis=0)
    balanced = chebyshev(np.array([0.5, 0.5]), low, high)(objectives)
    assert balanced.argmax() == 2
    one = chebyshev(np.array([0.99, 0.01]), low, np.array([1.0, 0.0]))(objectives[:2])
    assert np.isfinite(one).all()


def score_model(w: np.ndarray, score: object = None) -> ScoreModel:
    """Three tasks whose metric is the square root of their weight."""
    models = [
        TruthModel.fit(Series(w, np.sqrt(w[:, i]), w[:10], np.sqrt(w[:10, i]))) for i in range(3)
    ]
    return ScoreModel(models, score or (lambda m: m[..., 0]))  # type: ignore[arg-type]


def test_constraints_bound_the_improvement() -> None:
    """The more of task 0 the better, but task 1 needs a metric of 0.6: a weight of 0.36."""
    w = np.random.default_rng(0).dirichlet(np.ones(3), 30)
    found = search(
        ScoreImprovement(score_model(w), 1.0, constraints=lambda m: 0.6 - m[..., 1:2]), w
    )
    assert found == pytest.approx([0.64, 0.36, 0.0], abs=0.04)
    ceiling = search(
        ScoreImprovement(score_model(w), 1.0, constraints=lambda m: m[..., :1] - 0.5), w
    )
    assert ceiling[0] == pytest.approx(0.25, abs=0.03)


def test_while_nothing_is_feasible_the_probability_to_be_decides() -> None:
    """No seen point has 0.7 in two tasks; the score points elsewhere."""
    w = np.random.default_rng(0).dirichlet(np.ones(3), 30)
    w = w[w[:, 2] > 0.3]
    acquisition = ScoreImprovement(
        score_model(w, lambda m: m[..., 2]), 1.0, constraints=lambda m: 0.7 - m[..., :2]
    )
    assert search(acquisition, w) == pytest.approx([0.5, 0.5, 0.0], abs=0.05)
    points = np.array([[0.5, 0.5, 0.0], [0.4, 0.4, 0.2], [0.2, 0.2, 0.6], [0.0, 0.0, 1.0]])
    assert (np.diff(acquisition(points)) < 0).all()
    assert (np.diff(acquisition.merit(points)) < 0).all()


def test_impossible_constraints_still_order_points() -> None:
    w = np.random.default_rng(0).dirichlet(np.ones(3), 30)
    acquisition = ScoreImprovement(score_model(w), 1.0, constraints=lambda m: 2.0 - m[..., 1:2])
    assert np.isfinite(acquisition(w)).all()
    assert search(acquisition, w)[1] > 0.9


def test_constraints_that_always_hold_change_no_choice() -> None:
    w = np.random.default_rng(0).dirichlet(np.ones(3), 30)
    model = score_model(w)
    free, bound = (
        ScoreImprovement(model, 1.0, constraints=c) for c in (None, lambda m: m[..., :1] - 9.0)
    )
    np.testing.assert_allclose(free(w), bound(w))
    np.testing.assert_array_equal(free.merit(w), bound.merit(w))


def fronts(w: np.ndarray, **options: object) -> FrontImprovement:
    models = [TruthModel.fit(Series(w, y, w, y)) for y in (np.sqrt(w[:, 0]), np.sqrt(w[:, 1]))]
    draws = np.random.default_rng(0).standard_normal((64, 2))
    return FrontImprovement(models, draws, **options)  # type: ignore[arg-type]


def test_the_front_is_extended_where_constraints_hold() -> None:
    w = np.random.default_rng(0).dirichlet(np.ones(3), 12)
    found = search(fronts(w, constraints=lambda m: 0.8 - m[..., :1]), w)
    assert found[0] > 0.6
    assert found[2] < 0.05
    nothing = fronts(w[w[:, 0] < 0.3], constraints=lambda m: 0.9 - m[..., :1])
    assert search(nothing, w)[0] > 0.75


def test_what_is_below_the_reference_point_counts_nothing() -> None:
    w = np.random.default_rng(0).dirichlet(np.ones(3), 12)
    bad, good = np.array([[0.1, 0.9, 0.0]]), np.array([[0.6, 0.4, 0.0]])
    acquisition = fronts(w, reference=np.array([0.7, 0.0]))
    assert acquisition(good)[0] > 100 * acquisition(bad)[0]
    # a reference that nothing has reached: the way there counts
    assert np.isfinite(fronts(w, reference=np.array([5.0, 5.0]))(w)).all()


def test_points_under_way_are_not_sought_again() -> None:
    w = np.random.default_rng(0).dirichlet(np.ones(3), 12)
    point = search(fronts(w), w)[None]
    assert fronts(w, coming=point)(point)[0] < 0.2 * fronts(w)(point)[0]


def test_what_raises_a_task_of_the_best_truth_is_a_candidate() -> None:
    truths = np.array([[0.5, 0.3, 0.2], [0.6, 0.2, 0.2], [0.2, 0.2, 0.6]])
    doubled = np.array([0.3, 0.1, 0.1 * 2]) / 0.6

    class Spike:
        """Merit falls with the second weight; only the point wanted has any promise."""

        anchors = truth_weights = truths

        def __call__(self, weights: np.ndarray) -> np.ndarray:
            return (np.abs(weights - doubled).max(axis=1) < 1e-9).astype(float)

        def merit(self, weights: np.ndarray) -> np.ndarray:
            return weights[:, 0]

    np.testing.assert_allclose(search(Spike(), np.empty((0, 3))), doubled)
