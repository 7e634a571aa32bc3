"""What a study knows of each task weighting: its preview, its truth, what it cost."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_merge._optuna import lineage_root
from optuna_merge.study import BASELINE, DEFINITION, finetune_steps, task_names
from optuna_merge.weights import canonical_weights, param_name

SCORE = None
"""Stands for the score where a task's name stands for its metric."""


@dataclass(frozen=True)
class Outcome:
    """One task weighting: a preview and, if it was finetuned, its truth.

    Trials that go on from one another (a promoted copy, the retry of a killed trial) are one.

    Attributes:
        trial: Number of the latest of its trials.
        first: Number of the first one, which made the preview.
        kind: "preview", or if it was finetuned to the end "promoted" or "baseline".
        baseline: Name of the baseline, if it is one.
        weights: By task.
        preview: The score of the preview; None: not known, or no score in a Pareto study.
        truth: The score of the finetune.
        previews: Metrics of the preview, by task.
        truths: Metrics of the finetune, by task.
        feasible: Whether the truth satisfies the study's constraints; True without any.
        refined_steps: Training steps of its refined previews.
        finetune_steps: Training steps of its finetune; 0 for one that was found finished.
        ended: When its latest trial ended.
    """

    trial: int
    first: int
    kind: Literal["preview", "promoted", "baseline"]
    baseline: str | None
    weights: Mapping[str, float]
    preview: float | None
    truth: float | None
    previews: Mapping[str, float | None]
    truths: Mapping[str, float | None]
    feasible: bool
    refined_steps: int
    finetune_steps: int
    ended: datetime.datetime | None

    @property
    def steps(self) -> int:
        """All training steps spent on it."""
        return self.refined_steps + self.finetune_steps

    @property
    def is_truth(self) -> bool:
        """Whether it was finetuned to the end."""
        return self.kind != "preview"

    def seen(self, task: str | None) -> float | None:
        """The preview of a task's metric, or of the score (`SCORE`)."""
        return self.preview if task is None else self.previews[task]

    def found(self, task: str | None) -> float | None:
        """The truth of a task's metric, or of the score (`SCORE`)."""
        return self.truth if task is None else self.truths[task]


def study_outcomes(study: optuna.Study) -> list[Outcome]:
    """All task weightings of a study with a preview or a truth, by their first trials' numbers.

    Raises:
        ValueError: a task that is not known, or no trial with task weights.
    """
    names = task_names(study)
    if not names:
        raise ValueError(
            f"study {study.study_name!r} has no trial with task weights yet (parameters "
            f"{param_name('<task>')})"
        )
    latest: dict[int, FrozenTrial] = {}
    roots: dict[int, int] = {}
    for trial in study.get_trials(deepcopy=False):
        root = lineage_root(trial)
        # What was promoted at two gates was copied twice, the second time from the first copy.
        roots[trial.number] = roots.get(root, root)
        latest[roots[trial.number]] = trial
    refinements, whole = refinement_steps(study), finetune_steps(study)
    outcomes = (
        _outcome(trial, first, names, refinements, whole)
        for first, trial in sorted(latest.items())
    )
    return [o for o in outcomes if o is not None]


def best_outcome(study: optuna.Study, outcomes: Iterable[Outcome]) -> Outcome | None:
    """The best truth that satisfies the constraints; None without one, or with many objectives."""
    if len(study.directions) > 1:
        return None
    sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
    able = [(o.truth, o) for o in outcomes if o.feasible and o.truth is not None]
    # Of equals the earliest, as `study.best_trial`.
    return max(able, key=lambda pair: (sign * pair[0], -pair[1].trial))[1] if able else None


def task_directions(
    study: optuna.Study, tasks: Sequence[str], maximize: Mapping[str, bool] | None = None
) -> dict[str, bool]:
    """By task, whether its metric is to be maximised: as given, else as the study's directions."""
    if maximize is not None:
        return {name: maximize[name] for name in tasks}
    found = [d == StudyDirection.MAXIMIZE for d in study.directions]
    return dict(zip(tasks, found if len(found) == len(tasks) else found[:1] * len(tasks)))


def check_quantity(study: optuna.Study, task: str | None) -> str:
    """What a task's name, or `SCORE`, stands for, in words.

    Raises:
        ValueError: no such task, or the score of a study of several objectives.
    """
    if task is None:
        if len(study.directions) > 1:
            raise ValueError(f"study {study.study_name!r} has several objectives; name a task")
        return "score"
    names = task_names(study)
    if names and task not in names:
        raise ValueError(f"no task {task!r} in study {study.study_name!r}: {list(names)}")
    return f"metric of {task}"


def refinement_steps(study: optuna.Study) -> tuple[int, ...]:
    """Training steps of the refined previews, as the study's definition says."""
    found: dict[str, Any] = json.loads(study.user_attrs.get(DEFINITION, "{}"))
    return tuple(found.get("refinement", {}).get("steps", ()))


def task_run_steps(study: optuna.Study) -> int:
    """Training steps of the tasks' own finetunes, which come before the first preview.

    It is one finetune per task, as the study's definition says; 0 without a definition.
    """
    return (finetune_steps(study) or 0) * len(task_names(study))


def _outcome(
    trial: FrozenTrial,
    first: int,
    names: Sequence[str],
    refinements: Sequence[int],
    whole: int | None,
) -> Outcome | None:
    attrs = trial.user_attrs
    done = trial.state == TrialState.COMPLETE
    previews = {name: _number(attrs.get(f"preview_{name}")) for name in names}
    truths = {name: _number(attrs.get(f"truth_{name}")) if done else None for name in names}
    preview = _number(trial.intermediate_values.get(0))
    if not done and preview is None and None in previews.values():
        return None
    weights = {name: _number(attrs.get(f"weight_{name}")) for name in names}
    if None in weights.values():
        params = [trial.params.get(param_name(name), math.nan) for name in names]
        try:
            weights = dict(zip(names, canonical_weights(params, names)))
        except ValueError:
            return None
    baseline = attrs.get(BASELINE)
    return Outcome(
        trial=trial.number,
        first=first,
        kind="preview" if not done else "promoted" if baseline is None else "baseline",
        baseline=baseline,
        weights={name: weight for name, weight in weights.items() if weight is not None},
        preview=preview,
        truth=_number(trial.values[0]) if done and len(trial.values) == 1 else None,
        previews=previews,
        truths=truths,
        feasible=all(value <= 0 for value in trial.constraints.values()),
        refined_steps=_refined_steps(trial, refinements),
        finetune_steps=_finetune_steps(trial, max(refinements, default=0), whole),
        ended=trial.datetime_complete,
    )


def _refined_steps(trial: FrozenTrial, refinements: Sequence[int]) -> int:
    # A copy that was promoted at a refinement goes on where the trial that it copies stopped.
    return max((k for k in refinements if k in trial.intermediate_values), default=0)


def _finetune_steps(trial: FrozenTrial, before: int, whole: int | None) -> int:
    if trial.user_attrs.get("truth_reused", False):
        return 0
    last = max(trial.intermediate_values, default=0)
    if last <= before and "truth_seconds" in trial.user_attrs:
        return whole or 0  # a Pareto study's finetunes have no rungs
    return max(last - before, 0)


def _number(value: Any) -> float | None:
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    return None
