"""The Pareto front that previews and truths let expect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import optuna

from optuna_merge.goals import non_dominated
from optuna_merge.surrogate._of_study import truth_models
from optuna_merge.surrogate._simplex import startup_design
from optuna_merge.trials import TrialReader, read_study

Array = npt.NDArray[np.float64]


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
    study: optuna.Study, *, n_points: int = 2000, max_points: int = 100, seed: int = 0
) -> list[FrontPoint]:
    """The Pareto front that a study's previews and truths let expect, of one objective or several.

    The models are those of `PreviewSampler`, one per task, from the attributes `preview_<task>`
    and `truth_<task>`. Of a design on the simplex, the faces and the study's own weights, the
    points are kept whose expected metrics no other's dominate.

    Args:
        study: Its trials suggest `w_<task>`.
        n_points: Weights that are compared.
        max_points: Of a larger front so many are kept, far from each other.
        seed: Of the design.

    Returns:
        The points, by falling weight of the first task.

    Raises:
        ValueError: a task without any preview or truth.
    """
    findings = read_study(study)
    names = findings.tasks
    models = truth_models(study, findings, names, pending=True)
    known = [model for model in models.values() if model is not None]
    if len(known) < len(names):
        empty = next(name for name in names if models[name] is None)
        raise ValueError(
            f"study {study.study_name!r} has no preview and no truth of task {empty!r}: its "
            f"trials need the attributes preview_<task> or truth_<task>"
        )
    history = TrialReader(names).read(study.study_name, study.get_trials(deepcopy=False))
    weights = np.concatenate([startup_design(len(names), n_points, seed), history.visited()])
    weights = np.unique(weights, axis=0)[::-1]
    mean, std = (np.stack(of, axis=1) for of in zip(*(model.predict(weights) for model in known)))
    front = np.flatnonzero(non_dominated(mean * [findings.sign(name) for name in names]))
    front = front[_far_apart(mean[front], max_points)]
    return [
        FrontPoint(*(dict(zip(names, rows[i].tolist())) for rows in (weights, mean, std)))
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
