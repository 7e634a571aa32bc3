"""What stands in a study's attributes, for its readers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from optuna_merge.trials._attributes import (
    DEFINITION,
    GREATER_IS_BETTER,
    PREVIEW_RUN,
    REFERENCE_POINT,
    TASKS,
)
from optuna_merge.trials._weights import weight_tasks


def task_names(
    study: optuna.Study, trials: Sequence[FrozenTrial] | None = None
) -> tuple[str, ...]:
    """The study's tasks in order; () if no trial has suggested task weights.

    The order is that of the study's attribute `tasks`, or else of the first trial's parameters.
    `trials` are the study's, where they have been read already.
    """
    found = weight_tasks(study.get_trials(deepcopy=False) if trials is None else trials)
    listed = study.user_attrs.get(TASKS)
    if isinstance(listed, list) and (not found or sorted(listed) == sorted(found)):
        return tuple(listed)
    return found


def stored_definition(study: optuna.Study) -> dict[str, Any]:
    """The definition that the study was prepared with, as JSON values; {} without one."""
    found: dict[str, Any] = json.loads(study.user_attrs.get(DEFINITION, "{}"))
    return found


def finetune_steps(study: optuna.Study) -> int | None:
    """Training steps of one finetune, as the study's definition says; None without one."""
    steps = stored_definition(study).get("finetuning", {}).get("steps")
    return None if steps is None else int(steps)


def has_preview_runs(study: optuna.Study) -> bool:
    """Whether workers of the study have, or had, the role to preview only."""
    prefix = PREVIEW_RUN.format(run="")
    return any(name.startswith(prefix) for name in study.user_attrs)


def reference_point(study: optuna.Study, tasks: Sequence[str]) -> npt.NDArray[np.float64] | None:
    """The point that hypervolumes of the study are measured from, one value per task.

    It stands in the study's attribute `reference_point`, by task; None without it.
    """
    found = study.user_attrs.get(REFERENCE_POINT)
    if not isinstance(found, Mapping) or not set(tasks) <= found.keys():
        return None
    return np.array([found[task] for task in tasks], dtype=float)


def task_directions(study: optuna.Study, tasks: Sequence[str]) -> dict[str, bool]:
    """By task, whether its metric is to be maximised.

    As the study's definition said when it was made; else as its directions, a single one holding
    for all tasks.
    """
    stored = study.user_attrs.get(GREATER_IS_BETTER)
    if isinstance(stored, Mapping) and set(tasks) <= stored.keys():
        return {name: bool(stored[name]) for name in tasks}
    found = [d == StudyDirection.MAXIMIZE for d in study.directions]
    return dict(zip(tasks, found if len(found) == len(tasks) else found[:1] * len(tasks)))
