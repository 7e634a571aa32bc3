"""Pareto fronts: which points nothing beats in all objectives, and how much they dominate.

Points are arrays `n x m`, one column per objective. In this module larger is better: multiply
what is minimised by -1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import optuna

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_MARGIN = 0.1


def non_dominated(points: Array) -> Mask:
    """Which points no other one dominates: is as good everywhere and better somewhere.

    Equal points don't dominate each other. A point with NaN is dominated.

    Examples:
        >>> non_dominated(np.array([[0.9, 0.5], [0.7, 0.7], [0.6, 0.6]]))
        array([ True,  True, False])
    """
    found: Mask = np.asarray(np.isfinite(points).all(axis=1))
    # The best sums first: nothing after a point dominates it, and most fall to the first ones.
    order = np.argsort(-np.where(found, np.nan_to_num(points).sum(axis=1), -np.inf), kind="stable")
    for i in order:
        if found[i]:
            worse = (points <= points[i]).all(axis=1) & (points < points[i]).any(axis=1)
            found &= ~worse
    return found


def layers(points: Array) -> Iterator[npt.NDArray[np.intp]]:
    """Indices of the non-dominated points, then of those among the rest, and so on.

    Points with NaN come last, in one layer.
    """
    left = np.arange(len(points))
    while len(left):
        front = non_dominated(points[left])
        if not front.any():
            front[:] = True
        yield left[front]
        left = left[~front]


def volume_alone(points: Array, reference: Array) -> Array:
    """Hypervolume that each point dominates on its own, seen from the reference point; `n`."""
    return np.asarray(np.prod(np.maximum(points - reference, 0.0), axis=1))


def hypervolume(points: Array, reference: Array) -> float:
    """Volume between the reference point and the front of the points.

    Points that are not better than the reference in all objectives add nothing.

    Examples:
        >>> hypervolume(np.array([[2.0, 1.0], [1.0, 2.0]]), np.zeros(2))
        3.0
    """
    import torch
    from botorch.utils.multi_objective.hypervolume import Hypervolume

    better = points[(points > reference).all(axis=1)]
    if not len(better):
        return 0.0
    front = np.unique(better[non_dominated(better)], axis=0)
    return float(Hypervolume(torch.as_tensor(reference)).compute(torch.as_tensor(front)))


def below_nadir(points: Array) -> Array:
    """A reference point for fronts between the points given, such as single-task solutions.

    It is the worst value of each objective among them, less a tenth of the range: with the worst
    values themselves the ends of the front would count nothing.
    """
    worst, best = points.min(axis=0), points.max(axis=0)
    return np.asarray(worst - _MARGIN * np.where(best > worst, best - worst, 1.0))


@dataclass(frozen=True)
class FrontPoint:
    """A point of an estimated front.

    Attributes:
        weights: By task.
        mean: By task, the expected true metric.
        std: By task, its standard deviation: how little is known, not the noise of a finetune.
    """

    weights: Mapping[str, float]
    mean: Mapping[str, float]
    std: Mapping[str, float]


def estimated_front(
    study: optuna.Study,
    tasks: Sequence[str] | None = None,
    *,
    maximize: Mapping[str, bool] | None = None,
    constraints: Callable[[Array], Array] | None = None,
    n_points: int = 2000,
    max_points: int = 100,
    seed: int = 0,
) -> list[FrontPoint]:
    """The Pareto front that a study's previews and truths let expect, of one objective or several.

    The models are those of `PreviewSampler`, one per task, from the attributes `preview_<task>`
    and `truth_<task>`. Of a design on the simplex, the faces and the study's own weights, the
    points are kept whose expected metrics no other's dominate.

    Args:
        study: Its trials suggest `w_<task>`.
        tasks: Task names in order; None: the study's.
        maximize: By task, whether its metric is to be maximised; None: as the study's definition
            said, or else as its directions, a single one holding for all tasks.
        constraints: As for `PreviewSampler`: points that are not expected to be feasible are left
            out.
        n_points: Weights that are compared.
        max_points: Of a larger front so many are kept, far from each other.
        seed: Of the design.

    Returns:
        The points, by falling weight of the first task.

    Raises:
        ValueError: a task without any preview or truth.
    """
    from optuna_merge.outcomes import task_directions
    from optuna_merge.surrogate import TruthModel, startup_design
    from optuna_merge.trials import TrialReader, task_names

    names = tuple(task_names(study) if tasks is None else tasks)
    history = TrialReader(names).read(study.study_name, study.get_trials(deepcopy=False))
    upwards = task_directions(study, names, maximize)
    signs = np.array([1.0 if upwards[n] else -1.0 for n in names])
    metrics = [history.metric(i, sign) for i, sign in enumerate(signs.tolist())]
    empty = [n for n, m in zip(names, metrics) if not len(m.previews) + len(m.truths)]
    if empty or not names:
        raise ValueError(
            f"study {study.study_name!r} has no preview and no truth of task "
            f"{empty[0] if empty else '(there are none)'!r}: its trials need the attributes "
            f"preview_<task> or truth_<task>"
        )
    weights = np.concatenate([startup_design(len(names), n_points, seed), history.visited()])
    weights = np.unique(weights, axis=0)[::-1]
    predictions = [TruthModel.fit(m).predict(weights) for m in metrics]
    mean = np.stack([m for m, _ in predictions], axis=1)
    std = np.stack([s for _, s in predictions], axis=1)
    kept = non_dominated(signs * mean)
    if constraints is not None:
        feasible = (constraints(mean) <= 0).all(axis=1)
        kept = np.zeros_like(feasible)
        kept[feasible] = non_dominated(signs * mean[feasible])
    front = np.flatnonzero(kept)
    front = front[_far_apart(mean[front], max_points)]
    return [
        FrontPoint(
            *(dict(zip(names, rows[i].tolist())) for rows in (weights, mean, std)),
        )
        for i in front
    ]


def _far_apart(points: Array, n: int) -> npt.NDArray[np.intp]:
    """Indices, ascending, of `n` points far from each other, the best of each column first."""
    if len(points) <= n:
        return np.arange(len(points))
    scaled = (points - points.min(axis=0)) / np.maximum(np.ptp(points, axis=0), 1e-12)
    chosen = list(dict.fromkeys(int(i) for i in scaled.argmax(axis=0)))[:n]
    gaps = np.full(len(points), np.inf)
    for i in chosen:
        gaps = np.minimum(gaps, np.square(scaled - scaled[i]).sum(axis=1))
    while len(chosen) < n:
        i = int(np.argmax(gaps))
        chosen.append(i)
        gaps = np.minimum(gaps, np.square(scaled - scaled[i]).sum(axis=1))
    return np.sort(np.array(chosen))
