from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler
from optuna.samplers import RandomSampler
from optuna.study import Study
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from optuna.trial import TrialState

from .process import SimplexProcess


class SimplexGPSampler(BaseSampler):
    """Bayesian optimisation of shares that sum to one.

    The objective suggests each share with ``trial.suggest_float(name, 0, 1)``. Suggested shares
    sum to one; shares that somebody else suggested are divided by their sum. The first trials are
    equal shares, each share alone, and random points of the simplex and its faces. Then a Gaussian
    process of the values is maximised by the log expected improvement, over the inside, the faces
    and the corners. Trials that run are taken as if they came out as expected. Other parameters
    are sampled at random.

    Args:
        names: Names of the shares, at least two.
        seed: Seed of the random numbers; a suggestion is a function of the seed, the trial's
            number and the finished trials.
        n_startup_trials: Trials before the model takes over; the default is four more than there
            are shares.
        n_candidates: Points of the simplex at which the expected improvement is computed.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        seed: int | None = None,
        n_startup_trials: int | None = None,
        n_candidates: int = 1000,
    ) -> None:
        if isinstance(names, str) or len(set(names)) != len(names) or len(names) < 2:
            raise ValueError(f"names must be at least two different names, got {names!r}.")
        if n_startup_trials is not None and n_startup_trials < 2:
            raise ValueError(f"n_startup_trials must be at least 2, got {n_startup_trials}.")
        if n_candidates < 100:
            raise ValueError(f"n_candidates must be at least 100, got {n_candidates}.")
        self._names = list(names)
        self._n_startup = len(names) + 4 if n_startup_trials is None else n_startup_trials
        self._n_candidates = n_candidates
        self._seed = _fresh_seed() if seed is None else seed
        self._independent = RandomSampler(seed=seed)

    def reseed_rng(self) -> None:
        self._seed = _fresh_seed()
        self._independent.reseed_rng()

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        if len(study.directions) > 1:
            raise ValueError("SimplexGPSampler takes studies of one objective only.")
        return {name: FloatDistribution(0.0, 1.0) for name in self._names}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        if param_name in self._names:
            raise ValueError(
                f"The share {param_name!r} has the distribution {param_distribution}; "
                f"suggest it with trial.suggest_float({param_name!r}, 0, 1)."
            )
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        shares = self._suggest(study, trial.number)
        return {name: float(share) for name, share in zip(self._names, shares)}

    def _suggest(self, study: Study, number: int) -> np.ndarray:
        rng = np.random.default_rng([self._seed, number])
        finished: list[np.ndarray] = []
        values: list[float] = []
        pending: list[np.ndarray] = []
        sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
        states = (TrialState.COMPLETE, TrialState.RUNNING)
        for other in study.get_trials(deepcopy=False, states=states):
            if other.number == number or not all(name in other.params for name in self._names):
                continue
            shares = _on_simplex(np.array([[other.params[name] for name in self._names]]))[0]
            if other.state == TrialState.RUNNING:
                pending.append(shares)
            elif other.value is not None and np.isfinite(other.value):
                finished.append(shares)
                values.append(sign * other.value)
        n_begun = len(finished) + len(pending)
        if n_begun < self._n_startup or len(finished) < 2:
            return self._design(n_begun, [*finished, *pending], rng)
        # Trials are read by number: that makes a suggestion a function of the study alone.
        process = SimplexProcess(np.array(finished), np.array(values))
        if pending:
            process = process.with_pending(np.array(pending))
        return self._maximise(process, np.array([*finished, *pending]), np.array(values), rng)

    def _design(
        self, n_begun: int, known: list[np.ndarray], rng: np.random.Generator
    ) -> np.ndarray:
        n = len(self._names)
        for point in np.concatenate([np.full((1, n), 1.0 / n), np.eye(n)]):
            if not any(np.abs(point - other).max() < 1e-9 for other in known):
                return point
        points = _random(64, n, rng)
        gaps = np.abs(points[:, None] - np.array(known)).max(-1).min(-1)
        return points[np.argmax(gaps)]

    def _maximise(
        self,
        process: SimplexProcess,
        known: np.ndarray,
        values: np.ndarray,
        rng: np.random.Generator,
    ) -> np.ndarray:
        n = len(self._names)
        best = known[np.argsort(-values, kind="stable")[:3]]
        points = np.concatenate(
            [
                np.full((1, n), 1.0 / n),
                np.eye(n),
                _random(self._n_candidates // 2, n, rng),
                *(_around(point, self._n_candidates // 6, 0.2, rng) for point in best),
            ]
        )
        merits = process.log_improvement(points)
        for step in (0.05, 0.01):
            top = points[np.argsort(-merits, kind="stable")[:4]]
            near = np.concatenate([_around(point, 100, step, rng) for point in top])
            points = np.concatenate([points, near])
            merits = np.concatenate([merits, process.log_improvement(near)])
        order = np.argsort(-merits, kind="stable")
        is_new = np.abs(points[order][:, None] - known).max(-1).min(-1) > 1e-4
        return points[order[np.argmax(is_new)]]


def _fresh_seed() -> int:
    return int(np.random.SeedSequence().generate_state(1)[0])


def _on_simplex(points: np.ndarray) -> np.ndarray:
    """Rows without negative entries, divided by their sum; equal shares where that is zero."""
    points = np.maximum(points, 0.0)
    points[points.sum(-1) <= 0.0] = 1.0
    points = points / points.sum(-1, keepdims=True)
    points[points < 1e-3] = 0.0
    return points / points.sum(-1, keepdims=True)


def _random(size: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Points uniform on the simplex, every other one on a face."""
    points = rng.exponential(size=(size, n))
    ranks = rng.permuted(np.tile(np.arange(n), (size, 1)), axis=1)
    support = rng.integers(1, n + 1, size=(size, 1))
    support[::2] = n
    return _on_simplex(points * (ranks < support))


def _around(point: np.ndarray, size: int, step: float, rng: np.random.Generator) -> np.ndarray:
    """Points near one, some of them on faces."""
    points = point + step * rng.random((size, 1)) * rng.normal(size=(size, len(point)))
    points[rng.random(points.shape) < 0.1] = 0.0
    return _on_simplex(points)
