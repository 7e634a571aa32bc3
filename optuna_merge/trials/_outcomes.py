"""What a study knows of each task weighting: its preview, its truth, what it cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_merge.trials._attributes import BASELINE, DUPLICATE_OF, PROMOTED_FROM, UNIFORM
from optuna_merge.trials._lineage import lineage, retry_history
from optuna_merge.trials._outcome import SCORE, Outcome, Repeats, repeated_finetunes
from optuna_merge.trials._record import read_trial
from optuna_merge.trials._spending import study_costs
from optuna_merge.trials._study import finetune_steps, reference_point, task_directions, task_names
from optuna_merge.trials._weights import param_name


@dataclass(frozen=True)
class Counts:
    """Numbers of previews, finetunes and failures; weights that were tried again count once.

    Attributes:
        trials: All trials.
        previews: Weightings that a preview was made for.
        truths: Weightings that were finetuned to the end.
        promoted: Those of them that aren't baselines.
        baselines: The others.
        failed: Trials that failed, without baselines that another trial has.
        retried: Those of them that another trial went on from.
    """

    trials: int
    previews: int
    truths: int
    promoted: int
    baselines: int
    failed: int
    retried: int


@dataclass(frozen=True)
class Findings:
    """What reports say of a study; text, page, tables, notes and JSON all read this.

    Attributes:
        tasks: Task names, in order.
        maximize: By task, and for the score (`SCORE`) of a study of one objective, whether larger
            is better.
        outcomes: The weightings, by their first trials' numbers.
        front: Truths on the Pareto front; of a study of one objective none.
        counts: How many there are of what.
        reference_point: By task, what hypervolumes are measured from; None where not known.
        task_run_steps: Training steps of the tasks' own finetunes, which come before the first
            preview, as the study notes them, or else one finetune per task, as the definition
            says; 0 without a definition.
    """

    tasks: tuple[str, ...]
    maximize: Mapping[str | None, bool]
    outcomes: tuple[Outcome, ...]
    front: tuple[Outcome, ...]
    counts: Counts
    reference_point: Mapping[str, float] | None
    task_run_steps: int

    @property
    def several(self) -> bool:
        """Whether each task is an objective of its own."""
        return SCORE not in self.maximize

    @property
    def quantities(self) -> tuple[str | None, ...]:
        """What a truth has values of: the score (`SCORE`), if there is one, and each task."""
        return self.tasks if self.several else (SCORE, *self.tasks)

    @cached_property
    def truths(self) -> list[Outcome]:
        """Weightings that were finetuned to the end."""
        return [o for o in self.outcomes if o.is_truth]

    @cached_property
    def weightings(self) -> tuple[Repeats, ...]:
        """The truths by their weights: those at equal weights differ by their seeds."""
        return repeated_finetunes(self.truths)

    def repeats(self, outcome: Outcome) -> Repeats:
        """The truths at a truth's weights, itself among them."""
        return next((of for of in self.weightings if outcome in of.finetunes), Repeats((outcome,)))

    @cached_property
    def best(self) -> Outcome | None:
        """The best truth that satisfies the constraints; None without one, or a single score.

        Weights that were finetuned several times count with the mean of their truths, and have to
        satisfy the constraints each time; the first of these finetunes is the best.
        """
        if self.several:
            return None
        sign = self.sign(SCORE)
        able = [
            (sign * mean, -of.first.trial, of.first)
            for of in self.weightings
            if (mean := of.mean(SCORE)) is not None and all(o.feasible for o in of.finetunes)
        ]
        # Of equals the earliest, as `study.best_trial`.
        return max(able, key=lambda of: of[:2])[2] if able else None

    @cached_property
    def closest(self) -> Outcome | None:
        """If truths are known and none satisfies the constraints, which misses them least."""
        if any(o.feasible for o in self.truths):
            return None
        return min(self.truths, key=lambda o: (sum(o.missed.values()), o.trial), default=None)

    @cached_property
    def baselines(self) -> dict[str, Outcome]:
        """Finished baselines by name, such as "uniform, second seed"; the first of each."""
        found: dict[str, Outcome] = {}
        for outcome in self.truths:
            if outcome.baseline is not None and outcome.name is not None:
                found.setdefault(outcome.name, outcome)
        return found

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


def read_study(study: optuna.Study) -> Findings:
    """Read a study's trials once.

    Raises:
        ValueError: no trial has task weights, and no attribute of the study names its tasks.
    """
    trials = study.get_trials(deepcopy=False)
    names = task_names(study, trials)
    if not names:
        raise ValueError(
            f"study {study.study_name!r} has no trial with task weights yet (parameters "
            f"{param_name('<task>')})"
        )
    steps = finetune_steps(study) or 0
    lineages: dict[int, list[FrozenTrial]] = {}
    for trial in trials:
        lineages.setdefault(lineage(trial), []).append(trial)
    found = (_outcome(of, first, names, steps) for first, of in sorted(lineages.items()))
    outcomes = tuple(outcome for outcome in found if outcome is not None)
    maximize: dict[str | None, bool] = dict(task_directions(study, names).items())
    front: set[int] = set()
    if len(study.directions) > 1:
        front = {t.number for t in study.best_trials}
    else:
        maximize[SCORE] = study.direction == StudyDirection.MAXIMIZE
    corner = reference_point(study, names)
    return Findings(
        tasks=names,
        maximize=maximize,
        outcomes=outcomes,
        front=tuple(o for o in outcomes if o.is_truth and o.feasible and o.trial in front),
        counts=_counts(trials, outcomes),
        reference_point=None if corner is None else dict(zip(names, corner.tolist())),
        task_run_steps=int(study_costs(study).get("task_run_steps", steps * len(names))),
    )


def _counts(trials: Sequence[FrozenTrial], outcomes: Sequence[Outcome]) -> Counts:
    failed = {
        t.number for t in trials if t.state == TrialState.FAIL and DUPLICATE_OF not in t.user_attrs
    }
    retried = {number for trial in trials for number in retry_history(trial)}
    kinds = [o.kind for o in outcomes]
    return Counts(
        trials=len(trials),
        previews=sum(o.previewed for o in outcomes),
        truths=len(kinds) - kinds.count("preview"),
        promoted=kinds.count("promoted"),
        baselines=kinds.count("baseline"),
        failed=len(failed),
        retried=len(failed & retried),
    )


def _outcome(
    lineage: Sequence[FrozenTrial], first: int, names: Sequence[str], steps: int
) -> Outcome | None:
    """What a lineage says; None without preview and truth. `steps` are those of a finetune."""
    # Two workers may copy one preview; the copy that gives way is no later news of it.
    ended = [t for t in lineage if t.state == TrialState.COMPLETE]
    trial = ended[0] if ended else lineage[-1]
    record, baseline, done = read_trial(trial, names), trial.user_attrs.get(BASELINE), bool(ended)
    seen = record.reported or record.noted
    if not record.weights or not (done or seen):
        return None
    previewed = seen and not record.preview_taken
    seconds = _known(record.truth_seconds)
    # A Pareto study's finetunes have no rungs.
    trained = steps if record.last_step < 1 and seconds is not None else max(record.last_step, 0)

    def by_task(values: Iterable[float]) -> dict[str, float | None]:
        return dict(zip(names, map(_known, values)))

    return Outcome(
        trial=trial.number,
        first=first,
        promoted_from=trial.user_attrs.get(PROMOTED_FROM),
        kind="preview" if not done else "promoted" if baseline is None else "baseline",
        baseline=baseline,
        repeat=record.repeat,
        weights=dict(zip(names, record.weights)),
        preview=_known(record.preview),
        truth=_known(record.values[0]) if len(record.values) == 1 else None,
        previews=by_task(record.preview_metrics),
        truths=by_task(record.truth_metrics),
        previewed=previewed,
        standard_errors=by_task(record.preview_se),
        constraints=dict(trial.constraints),
        reused=record.reused,
        preview_seconds=_known(record.preview_seconds) or 0.0 if previewed else 0.0,
        finetune_seconds=None if record.reused else seconds,
        steps=0 if record.reused else trained,
        started=trial.datetime_start,
        ended=trial.datetime_complete,
        at_anchor=record.is_at_anchor,
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
