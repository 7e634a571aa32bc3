from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from botorch.acquisition import LogExpectedImprovement
from botorch.models import SingleTaskGP

from optuna_merge.samplers._acquisition import (
    FrontImprovement,
    ScoreImprovement,
    TruthImprovement,
    chebyshev,
    log_expected_improvement,
    maximise,
)
from optuna_merge.samplers._history import Series
from optuna_merge.samplers._model import ScoreModel, TruthModel


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
