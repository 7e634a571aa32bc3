"""The methods that run in this process: ours, Optuna's, and what needs no search.

All of them get the same tables and count cost in the same units (see `Finetunes`). Where numbers
from 0 to 1 are searched, task weights are the numbers divided by their sum, or, with "-log u" in
the name, their logarithms (`simplex_weights`). Methods that search truths begin with uniform
weights; Optuna's samplers then draw five random points, fewer than their defaults. Optuna 5's TPE
is always multivariate. `PreviewSampler` and `PromotionPruner` have their defaults in all they do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import numpy as np
import optuna

from optuna_merge import Objective, PreviewSampler, PromotionPruner, open_search
from optuna_merge.pruners import stop_reason
from optuna_merge.surrogate import TruthModel
from optuna_merge.trials import (
    PREVIEW,
    PREVIEW_SE,
    TRUTH,
    Series,
    canonical_weights,
    of_task,
    suggest_weights,
    weight_params,
)
from studies.judge import worst_task
from studies.search.replay import (
    REDUCTION,
    Array,
    Finetune,
    Finetunes,
    resources,
    simplex_weights,
    uniform,
)
from studies.search.tables import Tables
from studies.search.workbench import TableWorkbench
from studies.simple_rules import doubled, in_turn, own_weight_curves, proportional

STARTUP = 6
PREVIEWS = 40
"""How many previews those methods make that only look at previews."""

_FINE = 20_000  # points of the simplex at which the quadratic surrogates are compared

DOUBLINGS = 40
"""After so many doublings the rule ends: it goes around in circles, or to a corner."""

Method = Callable[[Tables, str, int, float], Finetunes]
"""Tables, score, seed and budget in finetunes; to all finetunes of the search."""

Space = Callable[[Sequence[float]], list[float]]
"""From the numbers that a sampler suggests to task weights."""


def cube_weights(numbers: Sequence[float]) -> list[float]:
    """Numbers from 0 to 1 divided by their sum."""
    total = sum(numbers)
    return [x / total for x in numbers] if total > 0 else uniform(len(numbers))


def only_uniform(tables: Tables, score: str, seed: int, budget: float) -> Finetunes:
    """One finetune at uniform weights."""
    finetunes = Finetunes(tables.landscape(score), seed, budget)
    finetunes.begin(finetunes.nearest(uniform(len(tables.tasks)))).train()
    return finetunes


def only_proportional(tables: Tables, score: str, seed: int, budget: float) -> Finetunes:
    """One finetune at weights in proportion to the tasks' training examples."""
    finetunes = Finetunes(tables.landscape(score), seed, budget)
    finetunes.begin(finetunes.nearest(proportional(tables.sizes))).train()
    return finetunes


def random_truths(tables: Tables, score: str, seed: int, budget: float) -> Finetunes:
    """Uniform weights, then random points of the simplex."""
    finetunes = Finetunes(tables.landscape(score), seed, budget)
    rng = np.random.default_rng([seed, 1])
    point = uniform(len(tables.tasks))
    while not finetunes.is_over:
        finetunes.begin(finetunes.nearest(point)).train()
        point = rng.dirichlet(np.ones(len(tables.tasks))).tolist()
    return finetunes


def doubling_rule(tables: Tables, score: str, seed: int, budget: float) -> Finetunes:
    """Uniform weights, then the weight of the worst task doubled, and so on.

    Of a target its own weight. A point of the table that was finetuned before is not paid again.
    """
    finetunes = Finetunes(tables.landscape(score), seed, budget)
    weights = uniform(len(tables.tasks))
    alone = None if tables.alone is None else list(tables.alone.values())
    done: set[int] = set()
    for _ in range(DOUBLINGS):
        if finetunes.is_over:
            break
        point = finetunes.nearest(weights)
        if point not in done:
            finetunes.begin(point).train()
            done.add(point)
        metrics = tables.truths[finetunes.seed, -1, point]
        weights = doubled(weights, worst_task(score, metrics, alone, tables.tasks))
    return finetunes


def own_weight_curve(tables: Tables, score: str, seed: int, budget: float) -> Finetunes:
    """Each task alone and uniform weights, then the best by the own-weight curves, in turn.

    What previews must know more than.
    """
    finetunes = Finetunes(tables.landscape(score), seed, budget)
    n_tasks = len(tables.tasks)
    points = [finetunes.nearest(w) for w in (*np.eye(n_tasks).tolist(), uniform(n_tasks))]
    for point in points:
        finetunes.begin(point).train()
    *alone, equal = tables.truths[finetunes.seed, -1, points]
    curves = own_weight_curves(np.array(alone), equal, tables.weights)
    for point in in_turn(tables.score(score, curves)):
        if finetunes.is_over:
            break
        if point not in points:
            finetunes.begin(point).train()
    return finetunes


def tpe(tables: Tables, score: str, seed: int, budget: float, space: Space) -> Finetunes:
    """Optuna's TPESampler on truths."""
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)
    return _truths_alone(tables, score, seed, budget, sampler, space)


def gp(tables: Tables, score: str, seed: int, budget: float, space: Space) -> Finetunes:
    """Optuna's GPSampler on truths."""
    sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=STARTUP)
    return _truths_alone(tables, score, seed, budget, sampler, space)


def simplex_gp(tables: Tables, score: str, seed: int, budget: float) -> Finetunes:
    """`PreviewSampler` on truths, without previews, and told the score alone."""
    sampler = PreviewSampler(tables.tasks, seed=seed, n_startup_trials=STARTUP)
    return _truths_alone(tables, score, seed, budget, sampler, start=_spread(tables, seed))


def metric_gps(tables: Tables, score: str, seed: int, budget: float) -> Finetunes:
    """The same, told each task's metric and what the score is of these, as ours is."""
    sampler = PreviewSampler(
        tables.tasks, seed=seed, n_startup_trials=STARTUP, score=_score(tables, score)
    )
    return _truths_alone(tables, score, seed, budget, sampler, start=_spread(tables, seed))


def metric_gps_from_corners(tables: Tables, score: str, seed: int, budget: float) -> Finetunes:
    """The same from the sampler's own design, which has uniform weights and each task alone.

    What ours knows but for the previews, at the same cost of the tasks alone.
    """
    sampler = PreviewSampler(tables.tasks, seed=seed, score=_score(tables, score))
    return _truths_alone(tables, score, seed, budget, sampler)


def hyperband(tables: Tables, score: str, seed: int, budget: float, space: Space) -> Finetunes:
    """Optuna's TPESampler, and HyperbandPruner over the rungs of a finetune."""
    landscape = tables.landscape(score)
    finetunes = Finetunes(landscape, seed, budget)
    first, *middle, last = resources(len(landscape.steps))
    study = optuna.create_study(
        study_name=str(seed),  # brackets are drawn by it
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP),
        pruner=optuna.pruners.HyperbandPruner(
            min_resource=first, max_resource=last, reduction_factor=REDUCTION
        ),
    )
    study.enqueue_trial(_equal_params(tables))

    def objective(trial: optuna.Trial) -> float:
        finetune = finetunes.begin(finetunes.nearest(_suggested(trial, tables, space)))
        for rung, resource in enumerate((first, *middle)):
            trial.report(finetune.train(rung), resource)
            if trial.should_prune():
                raise optuna.TrialPruned
        return finetune.train()

    while not finetunes.is_over:
        study.optimize(objective, n_trials=1)
    return finetunes


def best_previews(tables: Tables, score: str, seed: int, budget: float) -> Finetunes:
    """Forty previews by `PreviewSampler` without a truth, then finetunes of the best, in turn."""
    workbench = TableWorkbench(tables, score, seed, budget)
    sampler = PreviewSampler(tables.tasks, seed=seed, score=workbench.goal.scores)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    seen: dict[int, float] = {}
    for _ in range(PREVIEWS):
        trial = study.ask()
        weights = suggest_weights(trial, tables.tasks)
        preview = workbench.preview(weights)
        for task, metric in preview.metrics.items():
            trial.set_user_attr(of_task(PREVIEW_SE, task), metric.standard_error)
            trial.set_user_attr(of_task(PREVIEW, task), metric.value)
        value = workbench.goal.score_of(preview.values)
        trial.report(value, 0)
        seen[workbench.point(weights)] = value
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    finetunes = workbench.finetunes
    _make_anchor(tables, finetunes)
    for point in sorted(seen, key=lambda p: (-seen[p], p)):
        if finetunes.is_over:
            break
        finetunes.begin(point).train()
    return finetunes


def quadratic_previews(tables: Tables, score: str, seed: int, budget: float) -> Finetunes:
    """A finetune at the optimum of quadratic surrogates of the previews.

    One of the task weights for each task's metric, fitted once to forty previews at random
    weights; the optimum is that of their score. The surrogates are those of Li et al. 2024 (arXiv
    2406.07529), whose method, a Pareto front of merges, this is not.
    """
    finetunes = TableWorkbench(tables, score, seed, budget).finetunes
    _make_anchor(tables, finetunes)
    rng = np.random.default_rng([seed, 1])
    previews = tables.previews[seed % len(tables.previews)]
    n_tasks = len(tables.tasks)
    points = [finetunes.nearest(w) for w in rng.dirichlet(np.ones(n_tasks), PREVIEWS).tolist()]
    finetunes.pay(PREVIEWS * np.array(tables.prices.preview))
    weights = tables.weights[points]
    coefficients = np.linalg.lstsq(_quadratic(weights), previews[points], rcond=None)[0]
    fine = np.concatenate([np.eye(n_tasks), rng.dirichlet(np.ones(n_tasks), _FINE)])
    expected = tables.score(score, _quadratic(fine) @ coefficients)
    best = fine[int(np.argmax(expected))]
    finetunes.begin(finetunes.nearest(best.tolist())).train()
    return finetunes


def ours(
    tables: Tables,
    score: str,
    seed: int,
    budget: float,
    *,
    stop_when_flat: bool = False,
    fraction: float | None = None,
    is_told_score: bool = True,
) -> Finetunes:
    """A search as it is opened for any workbench: `PreviewSampler` and `PromotionPruner`.

    But uniform weights are finetuned once: their second seed is one of those that judge. And it
    goes on where it would say that the score is flat, unless it is to stop there. The options but
    for that take away a part of it: with a `fraction` the pruner promotes so many of the previews,
    whatever these cost and can still teach; where sampler and pruner are not told what the score
    is of the tasks' metrics, they have one model, of the score.
    """
    workbench = TableWorkbench(tables, score, seed, budget)
    study = open_search(
        workbench,
        "replayed",
        seed=seed,
        second_seed=False,
        stop_when_flat=stop_when_flat,
        fraction=fraction,
    )
    if not is_told_score:
        study.sampler = PreviewSampler(tables.tasks, seed=seed)
        study.pruner = PromotionPruner(fraction=fraction, seed=seed)
    objective = Objective(workbench, progress=False)
    while not workbench.finetunes.is_over and stop_reason(study) is None:
        study.optimize(objective, n_trials=1)
    return workbench.finetunes


def ours_without_curves(tables: Tables, score: str, seed: int, budget: float) -> Finetunes:
    """Ours, but its models don't know whose metric they are of: no curve of the own weight."""
    fit = TruthModel.fit

    def unowned(series: Series) -> TruthModel:
        return fit(replace(series, own=None, anchored=np.zeros(len(series.truths), dtype=bool)))

    with patch.object(TruthModel, "fit", unowned):
        return ours(tables, score, seed, budget)


def _make_anchor(tables: Tables, finetunes: Finetunes) -> None:
    """Pay for the finetune at uniform weights where it corrects the previews; it is a truth."""
    if tables.anchored:
        finetunes.begin(finetunes.nearest(uniform(len(tables.tasks)))).train()


METHODS: dict[str, Method] = {
    "uniform": only_uniform,
    "proportional": only_proportional,
    "doubling rule": doubling_rule,
    "own-weight curve": own_weight_curve,
    "random": random_truths,
    "TPE": partial(tpe, space=cube_weights),
    "TPE (-log u)": partial(tpe, space=simplex_weights),
    "GPSampler": partial(gp, space=cube_weights),
    "GPSampler (-log u)": partial(gp, space=simplex_weights),
    "TPE + Hyperband": partial(hyperband, space=cube_weights),
    "TPE + Hyperband (-log u)": partial(hyperband, space=simplex_weights),
    "best previews": best_previews,
    "quadratic": quadratic_previews,
    "simplex GP": simplex_gp,
    "metric GPs": metric_gps,
    "metric GPs from corners": metric_gps_from_corners,
    "ours until flat": partial(ours, stop_when_flat=True),
    "ours": ours,
}

PARTS: dict[str, Method] = {
    "ours at a fixed pace": partial(ours, fraction=1 / 8),
    "ours with one model": partial(ours, is_told_score=False),
    "ours without curves": ours_without_curves,
}
"""Ours without one of its parts each. They run when asked for by name."""


def _truths_alone(
    tables: Tables,
    score: str,
    seed: int,
    budget: float,
    sampler: optuna.samplers.BaseSampler,
    space: Space | None = None,
    start: Sequence[Sequence[float]] = (),
) -> Finetunes:
    """A sampler on truths; without a `space` it suggests the weights themselves."""
    finetunes = Finetunes(tables.landscape(score), seed, budget)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial(_uniform_params(tables) if space is None else _equal_params(tables))
    for weights in start:
        study.enqueue_trial(weight_params(dict(zip(tables.tasks, weights))))

    def objective(trial: optuna.Trial) -> float:
        weights = _weights(trial, tables) if space is None else _suggested(trial, tables, space)
        finetune = finetunes.begin(finetunes.nearest(weights))
        _tell_truth(trial, tables, finetune)
        return finetune.train()

    while not finetunes.is_over:
        study.optimize(objective, n_trials=1)
    return finetunes


def _tell_truth(trial: optuna.Trial, tables: Tables, finetune: Finetune) -> None:
    """Record each task's metric."""
    ends = tables.truths[finetune.of.seed, -1, finetune.point].tolist()
    for task, metric in zip(tables.tasks, ends):
        trial.set_user_attr(of_task(TRUTH, task), metric)


def _score(tables: Tables, score: str) -> Callable[[Array], Array]:
    return lambda metrics: tables.score(score, metrics)


def _spread(tables: Tables, seed: int) -> list[list[float]]:
    """Random points to start from: `PreviewSampler` itself begins with the tasks alone."""
    rng = np.random.default_rng([seed, 1])
    found: list[list[float]] = rng.dirichlet(np.ones(len(tables.tasks)), STARTUP - 1).tolist()
    return found


def _weights(trial: optuna.Trial, tables: Tables) -> list[float]:
    return list(suggest_weights(trial, tables.tasks).values())


def _suggested(trial: optuna.Trial, tables: Tables, space: Space) -> list[float]:
    """The weights of numbers from 0 to 1, one a task."""
    return space([trial.suggest_float(f"u_{task}", 0, 1) for task in tables.tasks])


def _equal_params(tables: Tables) -> dict[str, float]:
    """Numbers that mean uniform weights in either space: the middle of the cube."""
    return {f"u_{task}": 0.5 for task in tables.tasks}


def _uniform_params(tables: Tables) -> dict[str, float]:
    weights = canonical_weights(uniform(len(tables.tasks)))
    return weight_params(dict(zip(tables.tasks, weights)))


def _quadratic(weights: Array) -> Array:
    """All monomials of degree 2 or less of all weights but the last, `n x k`."""
    free = np.concatenate([np.ones((len(weights), 1)), weights[:, :-1]], axis=1)
    i, j = np.triu_indices(free.shape[1])
    return np.asarray(free[:, i] * free[:, j])
