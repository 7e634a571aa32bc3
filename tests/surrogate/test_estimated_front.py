from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution

from optuna_merge.goals import non_dominated
from optuna_merge.samplers import PreviewSampler
from optuna_merge.surrogate import estimated_front
from optuna_merge.trials import suggest_weights


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
    front = estimated_front(two_tasks(directions), max_points=20)
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


def test_an_estimated_front_needs_metrics() -> None:
    study = optuna.create_study(study_name="s")
    with pytest.raises(ValueError, match="study 's' has no trial with task weights yet"):
        estimated_front(study)
    study.add_trial(
        optuna.trial.create_trial(
            params={"w_a": 0.5}, distributions={"w_a": FloatDistribution(0, 1)}, value=1.0
        )
    )
    with pytest.raises(ValueError, match="no preview and no truth of task 'a'"):
        estimated_front(study)
