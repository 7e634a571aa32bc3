"""The multi-fidelity sampler over task weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_merge import surrogate
from optuna_merge.pruners import PromotionPruner
from optuna_merge.trials import (
    History,
    Series,
    TrialReader,
    cached_trials,
    canonical_weights,
    check_tasks,
    fixed_params,
    param_name,
    reference_point,
    task_directions,
)

Array = npt.NDArray[np.float64]


class PreviewSampler(BaseSampler):
    """Sampler of task weights, by Bayesian optimization from many previews and few truths.

    It works on any study whose trials suggest `w_<task>` in [0, 1] for each task and report the
    preview's score (that of a merge) at step 0. Trials that are promoted to a real finetune return
    its score, the truth. Trials that are PRUNED after their preview teach the sampler, too. The
    suggested parameters add up to exactly 1, so they are the task weights.

    The first trials are uniform weights, each task alone, and a scrambled Sobol design on the
    simplex and its faces; those that the study has already are left out. Then a Gaussian process
    on the previews feeds a second one on the truths, and the sampler maximises the log expected
    improvement of the truth over the simplex, faces and vertices included. Models of the truth
    that use the previews compete with models that don't. Each suggestion follows one of these
    models, drawn with the probability that the truths so far give it, so bad previews lose their
    influence. Before the first truth the previews alone decide. Trials that run or wait count as
    pending.

    If the study's pruner is a `PromotionPruner`, the sampler suggests the weights whose preview is
    expected to raise the expected improvement of the next finetune most. They differ by at least
    0.03 in some weight from every earlier preview with a standard error (`preview_<task>_se`), and
    then also from those that are being made, as long as there are such weights.

    With several objectives the sampler maximises the expected hypervolume improvement (of more
    than four objectives, the improvement of a random Chebyshev scalarisation), from the study's
    `reference_point` if it has one. If there are as many objectives as tasks, objective i belongs
    to task i, and the numeric user attributes `preview_<task>` are its previews.

    All state is read from the study. With a seed, a suggestion is a function of the seed, the
    trial's number and the study. You can change between this sampler and Optuna's own at any time.

    Args:
        tasks: Task names, in order.
        seed: Seed of the design and of the candidates; None draws a seed.
        n_startup_trials: How many different task weights the study needs, whoever suggested them,
            before the model takes over; None: number of tasks + 4, for three or four tasks 2 tasks
            + 1.
        n_candidates: Points scored in each suggestion.
        score: How the study's value follows from the tasks' metrics: a function from an array of
            metrics `... x T` to an array `...`, in NumPy operations. If it is given, and the
            trials have the user attributes `preview_<task>` and `truth_<task>`, each task's metric
            has its own model, with `preview_<task>_se` as the noise. For studies with one
            objective only.
        constraints: Constraints on the tasks' true metrics: a function from an array of metrics
            `... x T` to an array `... x C`; weights are feasible if all C numbers are 0 or less.
            The sampler then maximises the expected improvement over the best feasible truth by
            feasible truths. While no feasible truth is known, it maximises the probability of
            being feasible. Constraints need `score`, or in a study with several objectives one
            objective per task.

    Raises:
        ValueError: No task, empty or repeated names; counts below 1; in a trial, constraints
            without what they need.

    Examples:
        The first weights are uniform ones and each task alone; `PromotionPruner` has a whole
        objective.

        >>> import optuna
        >>> tasks = ["news", "reviews"]
        >>> study = optuna.create_study(sampler=PreviewSampler(tasks, seed=0))
        >>> for _ in range(3):
        ...     trial = study.ask()
        ...     weights = [trial.suggest_float(f"w_{task}", 0, 1) for task in tasks]
        ...     print(weights)
        [0.5, 0.5]
        [1.0, 0.0]
        [0.0, 1.0]
    """

    def __init__(
        self,
        tasks: Sequence[str],
        *,
        seed: int | None = None,
        n_startup_trials: int | None = None,
        n_candidates: int = 1500,
        score: Callable[[Array], Array] | None = None,
        constraints: Callable[[Array], Array] | None = None,
    ) -> None:
        self._tasks = check_tasks(tasks)
        if n_startup_trials is not None and n_startup_trials < 1:
            raise ValueError(f"n_startup_trials must be at least 1, got {n_startup_trials}.")
        if n_candidates < 100:
            raise ValueError(f"n_candidates must be at least 100, got {n_candidates}.")
        self._n_startup = n_startup_trials or surrogate.startup_size(len(self._tasks))
        self._n_candidates = n_candidates
        self._score, self._constraints = score, constraints
        self._seed = _fresh_seed() if seed is None else seed
        self._design_seed = self._seed
        self._independent = RandomSampler(seed=seed)
        self._reader = TrialReader(self._tasks)
        self._names = tuple(param_name(task) for task in self._tasks)

    def reseed_rng(self) -> None:
        self._seed = _fresh_seed()
        self._independent.reseed_rng()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        n_objectives = len(study.directions)
        if self._constraints is None or n_objectives == len(self._tasks) > 1:
            return
        if n_objectives > 1 or self._score is None:
            raise ValueError(
                "constraints are functions of the tasks' metrics: give PreviewSampler the score "
                "as a function of them too, or take a study with one objective per task"
            )

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {name: FloatDistribution(0.0, 1.0) for name in self._names}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        bounds = {
            name: d
            for name in self._names
            if isinstance(d := search_space.get(name), FloatDistribution)
        }
        params: dict[str, Any] = {
            name: self.sample_independent(study, trial, name, distribution)
            for name, distribution in search_space.items()
            if name not in bounds
        }
        if bounds:
            trials = cached_trials(study)
            starting = sum(self._is_starting(t) and t.number < trial.number for t in trials)
            history = self._reader.read(study.study_name, trials, skip=trial.number)
            face = _Face.of(self._names, bounds, history, fixed_params(study))
            shares = self._shares(study, trial.number, history, face, starting)
            params |= face.params(self._names, shares, bounds)
        return {name: params[name] for name in search_space}

    def _is_starting(self, trial: FrozenTrial) -> bool:
        """Whether its weights, or some of them, are still to come: they are written one by one."""
        return (
            trial.state == TrialState.RUNNING
            and not trial.params.keys() >= set(self._names)
            and "fixed_params" not in trial.system_attrs
        )

    def _shares(
        self, study: Study, number: int, history: History, face: _Face, starting: int
    ) -> Array:
        """A point of the simplex over the free weights."""
        n_free = len(face.free)
        if n_free == 1:
            return np.ones(1)
        visited = history.visited()
        if _has_different(visited, self._n_startup):
            improvement = self._improvement(study, number, history)
            if improvement is not None:
                acquisition: surrogate.Acquisition = improvement
                previewed = None
                if isinstance(study.pruner, PromotionPruner):
                    acquisition = surrogate.PreviewWorth(improvement, history.unpromoted())
                    previewed = history.previewed(noisy=True)
                    if len(previewed):  # and those to come, of other workers, say as much
                        previewed = np.concatenate([previewed, history.pending()])
                return surrogate.maximise(
                    acquisition,
                    n_free,
                    face.embed,
                    face.project,
                    visited,
                    self._n_candidates,
                    np.random.default_rng([self._seed, number]),
                    previewed=previewed,
                )
        # Trials that another worker has begun, and not suggested yet, take the next points.
        design = surrogate.startup_design(
            n_free, len(visited) + n_free + 2 + starting, self._design_seed
        )
        gaps = np.abs(face.embed(design)[:, None] - visited).max(axis=2).min(axis=1, initial=1.0)
        return np.asarray(design[np.flatnonzero(gaps > 1e-9)[starting]])

    def _improvement(
        self, study: Study, number: int, history: History
    ) -> surrogate.Improvement | None:
        """What a finetune promises, or None while there are too few values for a model."""
        aim = surrogate.Aim(
            tuple(d == StudyDirection.MAXIMIZE for d in study.directions),
            self._score,
            self._constraints,
            reference_point(study, self._tasks),
            tuple(task_directions(study, self._tasks).values()),
        )
        values, metrics = aim.values(history), aim.metrics(history)
        if min(map(_n_values, metrics), default=0) < 2:
            metrics = []
        if not metrics and min(map(_n_values, values)) < 2:
            return None
        several = len(values) if len(values) > 1 else 0
        rng = np.random.default_rng([self._seed, number, several])
        sided = bool(len(values[0].truths))
        return surrogate.improvement(aim, values, metrics, rng, sided=sided)


def _fresh_seed() -> int:
    return int(np.random.SeedSequence().generate_state(1)[0])


def _has_different(points: Array, n: int) -> bool:
    """Whether at least `n` rows differ; of thousands the first few hundred tell."""
    few = points[: 10 * n]
    return len(np.unique(few, axis=0)) >= n or (
        len(few) < len(points) and len(np.unique(points, axis=0)) >= n
    )


def _n_values(series: Series) -> int:
    return len(series.previews) + len(series.truths)


class _Face:
    """The part of the simplex that a search space leaves free.

    A weight that is missing from the search space is held at the value that `PartialFixedSampler`
    gives it, or else at its latest one in the study. The free ones add up to what it leaves of 1,
    or to 1 when it leaves nothing.
    """

    def __init__(self, free: Sequence[int], held: Mapping[int, float], n_tasks: int) -> None:
        self.free = list(free)
        self._held = np.zeros(n_tasks)
        for i, value in held.items():
            self._held[i] = value
        rest = 1.0 - float(self._held.sum())
        self._total = rest if rest > 0.0 else 1.0

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        bounds: Mapping[str, FloatDistribution],
        history: History,
        fixed: Mapping[str, Any],
    ) -> _Face:
        held = {}
        for i, name in enumerate(names):
            if name not in bounds:
                known = (
                    r.params[i] for r in reversed(history.records) if not math.isnan(r.params[i])
                )
                held[i] = float(fixed[name]) if name in fixed else next(known, 0.0)
        return cls([i for i, name in enumerate(names) if name in bounds], held, len(names))

    def embed(self, shares: Array) -> Array:
        """Canonical weights of all tasks, `q x T`, for shares of the free ones, `q x F`."""
        full = np.tile(self._held, (len(shares), 1))
        full[:, self.free] = shares * self._total
        return surrogate.to_simplex(full)

    def project(self, weights: Array) -> Array:
        """Shares of the free tasks, `q x F`, in weights of all tasks, `q x T`."""
        return surrogate.to_simplex(weights[:, self.free])

    def params(
        self, names: Sequence[str], shares: Array, bounds: Mapping[str, FloatDistribution]
    ) -> dict[str, float]:
        """Parameters in the bounds of their distributions."""
        exact = canonical_weights(shares.tolist())
        values = zip((names[i] for i in self.free), exact)
        return {
            name: min(max(share * self._total, bounds[name].low), bounds[name].high)
            for name, share in values
        }
