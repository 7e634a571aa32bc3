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

from optuna_merge._optuna import PROMOTED_AT, lineage_root, retry_history
from optuna_merge.study import (
    BASELINE,
    DEFINITION,
    GREATER_IS_BETTER,
    UNIFORM,
    finetune_steps,
    task_names,
)
from optuna_merge.weights import canonical_weights, param_name

SCORE = None
"""Stands for the score where a task's name stands for its metric."""


@dataclass(frozen=True)
class Seconds:
    """What one task weighting took, each part counted once however often it was tried.

    Attributes:
        preview: Its own preview, or what was done of one that was raced out.
        refinement: Its refined previews.
        finetune: Its finetune; None where none was trained for it.
        compared: Previews of its truth by the posterior families that the study compares.
    """

    preview: float = 0.0
    refinement: float = 0.0
    finetune: float | None = None
    compared: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """One task weighting: a preview and, if it was finetuned, its truth.

    Trials that go on from one another (a promoted copy, the retry of a killed trial) are one.

    Attributes:
        trial: Number of its trial that was finetuned to the end, or else of its latest.
        first: Number of the first one, which made the preview.
        kind: "preview", or if it was finetuned to the end "promoted" or "baseline".
        baseline: Name of the baseline, if it is one.
        weights: By task.
        preview: The score of the preview; None: not known, or no score in a Pareto study.
        truth: The score of the finetune.
        previews: Metrics of the preview, by task.
        truths: Metrics of the finetune, by task.
        previewed: Whether a preview was made for it. Not where one of equal weights was taken
            over, nor where it was finetuned without any.
        standard_errors: Of the preview's metrics, by task, over validation examples.
        constraints: Constraint values of the truth by name, feasible is 0 or less.
        reused: Whether its finetune was found finished: nothing was trained for it.
        seconds: What it took.
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
    previewed: bool
    standard_errors: Mapping[str, float | None]
    constraints: Mapping[str, float]
    reused: bool
    seconds: Seconds
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

    @property
    def feasible(self) -> bool:
        """Whether it satisfies the study's constraints; True without any."""
        return not self.missed

    @property
    def missed(self) -> dict[str, float]:
        """The constraints that it violates, and by how much."""
        return {name: value for name, value in self.constraints.items() if not value <= 0}

    def seen(self, task: str | None) -> float | None:
        """The preview of a task's metric, or of the score (`SCORE`)."""
        return self.preview if task is None else self.previews[task]

    def found(self, task: str | None) -> float | None:
        """The truth of a task's metric, or of the score (`SCORE`)."""
        return self.truth if task is None else self.truths[task]


@dataclass(frozen=True)
class Counts:
    """How many there are of what. Weightings count once, however often they were tried.

    Attributes:
        trials: All trials.
        previews: Weightings that a preview was made for.
        raced_out: Weightings whose preview was stopped half-way.
        refined: Weightings with refined previews.
        truths: Weightings that were finetuned to the end.
        promoted: Those of them that aren't baselines.
        baselines: The others.
        failed: Trials that failed.
        retried: Those of them that another trial went on from.
    """

    trials: int
    previews: int
    raced_out: int
    refined: int
    truths: int
    promoted: int
    baselines: int
    failed: int
    retried: int


@dataclass(frozen=True)
class Findings:
    """All that is told of a study: text, page, tables, notes and JSON read it here.

    Attributes:
        tasks: Task names, in order.
        maximize: By task, and for the score (`SCORE`) of a study of one objective, whether larger
            is better.
        outcomes: The weightings, by their first trials' numbers.
        raced_out: By first trial, the share of the examples and the seconds of previews that were
            stopped half-way.
        best: The best truth that satisfies the constraints; None without one, or with many
            objectives.
        front: Truths on the Pareto front; of a study of one objective none.
        baselines: Finished baselines by name; the first of each.
        closest: Where truths are known and none satisfies the constraints, the one that misses
            them least.
        counts: How many there are of what.
    """

    tasks: tuple[str, ...]
    maximize: Mapping[str | None, bool]
    outcomes: tuple[Outcome, ...]
    raced_out: Mapping[int, tuple[float, float]]
    best: Outcome | None
    front: tuple[Outcome, ...]
    baselines: Mapping[str, Outcome]
    closest: Outcome | None
    counts: Counts

    @property
    def several(self) -> bool:
        """Whether each task is an objective of its own."""
        return SCORE not in self.maximize

    @property
    def truths(self) -> list[Outcome]:
        """Weightings that were finetuned to the end."""
        return [o for o in self.outcomes if o.is_truth]

    @property
    def uniform(self) -> Outcome | None:
        """Uniform weights, if they were finetuned."""
        return self.baselines.get(UNIFORM)

    @property
    def alone(self) -> dict[str, Outcome]:
        """By task, its finetune alone; of a study of one task none, which is uniform."""
        return {name: self.baselines[name] for name in self.tasks if name in self.baselines}

    def sign(self, quantity: str | None) -> float:
        """1.0 where larger values of a task's metric, or of the score, are better, else -1.0."""
        return 1.0 if self.maximize[quantity] else -1.0


def read_study(
    study: optuna.Study,
    tasks: Sequence[str] | None = None,
    *,
    maximize: Mapping[str, bool] | None = None,
) -> Findings:
    """Read a study's trials once.

    Args:
        study: The study.
        tasks: Task names, in order; None: the study's.
        maximize: As for `task_directions`.

    Raises:
        ValueError: no tasks are given, and no trial has task weights.
    """
    from optuna_merge.pruners import RACED_OUT

    names = tuple(_known_tasks(study) if tasks is None else tasks)
    trials = study.get_trials(deepcopy=False)
    lineages = _lineages(trials)
    outcomes = _outcomes(study, names, lineages)
    truths = [o for o in outcomes if o.is_truth]
    feasible = [o for o in truths if o.feasible]
    several = len(study.directions) > 1
    on_front = {t.number for t in study.best_trials} if several and feasible else set()
    closest = None
    if truths and not feasible:
        closest = min(truths, key=lambda o: (sum(o.missed.values()), o.trial))
    baselines: dict[str, Outcome] = {}
    for outcome in outcomes:
        if outcome.kind == "baseline" and outcome.baseline is not None:
            baselines.setdefault(outcome.baseline, outcome)
    raced_out = {
        first: (
            float(of[-1].user_attrs.get("preview_examples", 0.0)),
            float(of[-1].user_attrs.get("partial_preview_seconds", 0.0)),
        )
        for first, of in lineages.items()
        if RACED_OUT in of[-1].user_attrs
    }
    by_task = task_directions(study, names, maximize)
    directions: dict[str | None, bool] = {name: by_task[name] for name in names}
    if not several:
        directions[SCORE] = study.direction == StudyDirection.MAXIMIZE
    retried = {number for trial in trials for number in retry_history(trial)}
    failed = {t.number for t in trials if t.state == TrialState.FAIL}
    n_baselines = sum(o.kind == "baseline" for o in truths)
    return Findings(
        tasks=names,
        maximize=directions,
        outcomes=tuple(outcomes),
        raced_out=raced_out,
        best=best_outcome(study, outcomes),
        front=tuple(o for o in truths if o.trial in on_front),
        baselines=baselines,
        closest=closest,
        counts=Counts(
            trials=len(trials),
            previews=sum(o.previewed for o in outcomes),
            raced_out=len(raced_out),
            refined=sum(o.refined_steps > 0 for o in outcomes),
            truths=len(truths),
            promoted=len(truths) - n_baselines,
            baselines=n_baselines,
            failed=len(failed),
            retried=len(failed & retried),
        ),
    )


def study_outcomes(study: optuna.Study) -> list[Outcome]:
    """All task weightings of a study with a preview or a truth, by their first trials' numbers.

    Raises:
        ValueError: a task that is not known, or no trial with task weights.
    """
    names = _known_tasks(study)
    return _outcomes(study, names, _lineages(study.get_trials(deepcopy=False)))


def _known_tasks(study: optuna.Study) -> tuple[str, ...]:
    names = task_names(study)
    if not names:
        raise ValueError(
            f"study {study.study_name!r} has no trial with task weights yet (parameters "
            f"{param_name('<task>')})"
        )
    return names


def _lineages(trials: Iterable[FrozenTrial]) -> dict[int, list[FrozenTrial]]:
    """Trials that go on from one another, by the number of the first one, in order."""
    lineages: dict[int, list[FrozenTrial]] = {}
    roots: dict[int, int] = {}
    for trial in trials:
        root = lineage_root(trial)
        # What was promoted at two gates was copied twice, the second time from the first copy;
        # and a preview that was tried twice is copied from the second try.
        roots[trial.number] = roots.get(root, root)
        lineages.setdefault(roots[trial.number], []).append(trial)
    return dict(sorted(lineages.items()))


def _outcomes(
    study: optuna.Study, names: Sequence[str], lineages: Mapping[int, Sequence[FrozenTrial]]
) -> list[Outcome]:
    refinements, whole = refinement_steps(study), finetune_steps(study)
    found = (_outcome(of, first, names, refinements, whole) for first, of in lineages.items())
    return [outcome for outcome in found if outcome is not None]


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
    """By task, whether its metric is to be maximised.

    As given; else as the study's definition said when it was made; else as its directions, a
    single one holding for all tasks.
    """
    stored = study.user_attrs.get(GREATER_IS_BETTER)
    if maximize is None and isinstance(stored, Mapping) and set(tasks) <= stored.keys():
        maximize = stored
    if maximize is not None:
        return {name: bool(maximize[name]) for name in tasks}
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
    lineage: Sequence[FrozenTrial],
    first: int,
    names: Sequence[str],
    refinements: Sequence[int],
    whole: int | None,
) -> Outcome | None:
    # Two workers may copy one preview; the copy that gives way is no later news of it.
    ended = [t for t in lineage if t.state == TrialState.COMPLETE]
    trial = ended[0] if ended else lineage[-1]
    attrs = trial.user_attrs
    done = trial.state == TrialState.COMPLETE
    seen = 0 in trial.intermediate_values or all(f"preview_{n}" in attrs for n in names)
    if not done and not seen:
        return None
    weights = {name: _number(attrs.get(f"weight_{name}")) for name in names}
    if None in weights.values():
        params = [trial.params.get(param_name(name), math.nan) for name in names]
        try:
            weights = dict(zip(names, canonical_weights(params, names)))
        except ValueError:
            return None
    baseline = attrs.get(BASELINE)
    previewed = seen and "preview_taken_from" not in attrs
    return Outcome(
        trial=trial.number,
        first=first,
        kind="preview" if not done else "promoted" if baseline is None else "baseline",
        baseline=baseline,
        weights={name: weight for name, weight in weights.items() if weight is not None},
        preview=_number(trial.intermediate_values.get(0)),
        truth=_number(trial.values[0]) if done and len(trial.values) == 1 else None,
        previews={name: _number(attrs.get(f"preview_{name}")) for name in names},
        truths={n: _number(attrs.get(f"truth_{n}")) if done else None for n in names},
        previewed=previewed,
        standard_errors={name: _number(attrs.get(f"preview_{name}_se")) for name in names},
        constraints=dict(trial.constraints),
        reused=bool(attrs.get("truth_reused", False)),
        seconds=_seconds(trial, lineage, refinements, previewed),
        refined_steps=_refined_steps(trial, refinements),
        finetune_steps=_finetune_steps(trial, max(refinements, default=0), whole),
        ended=trial.datetime_complete,
    )


def _seconds(
    trial: FrozenTrial,
    lineage: Sequence[FrozenTrial],
    refinements: Sequence[int],
    previewed: bool,
) -> Seconds:
    from optuna_merge.calibration import FAMILY_PREVIEWS

    attrs = trial.user_attrs
    done = trial.state == TrialState.COMPLETE
    trained = "truth_seconds" in attrs and not attrs.get("truth_reused", False)
    # A killed trial's clone carries its predecessor's seconds, and a copy those of what it copies:
    # the latest of each stage counts, where refinements were made at that stage.
    stages = {lineage_root(t): t for t in lineage if _refined_there(t, refinements)}
    return Seconds(
        preview=attrs.get("preview_seconds", 0.0) if previewed else 0.0,
        refinement=sum(t.user_attrs.get("refinement_seconds", 0.0) for t in stages.values()),
        finetune=attrs["truth_seconds"] if trained else None,
        compared=attrs.get(f"{FAMILY_PREVIEWS}_seconds", 0.0) if done else 0.0,
    )


def _refined_there(trial: FrozenTrial, refinements: Sequence[int]) -> bool:
    """Whether it has refined previews of its own: those that a copy came with are another's."""
    inherited = trial.user_attrs.get(PROMOTED_AT, 0)
    return any(k in trial.intermediate_values and k > inherited for k in refinements)


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
