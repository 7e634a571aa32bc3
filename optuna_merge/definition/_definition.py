"""What a study is about: everything that must be the same on all its workers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from optuna_merge.definition._runs import GivenRun, Runs, given_runs, run_hash
from optuna_merge.finetuning import FinetuneSettings
from optuna_merge.goals import (
    PARETO,
    Constraint,
    Direction,
    Goal,
    Limits,
    Score,
    make_constraints,
    make_score,
)
from optuna_merge.models import MultitaskModel
from optuna_merge.posteriors import FAMILIES, PosteriorSettings as PosteriorSettings
from optuna_merge.previews import PreviewSettings, settled
from optuna_merge.tasks import Task, check_tasks
from optuna_merge.trials import check_task_names as check_task_names


@dataclass(frozen=True)
class SearchSettings:
    """Settings of a search in a definition; flags of the commands override them.

    They are no part of the study's fingerprint: another run of the study may have others.

    Attributes:
        second_seed: Finetune uniform weights a second time, with another seed, which tells the
            noise of one finetune.
        stop_when_flat: Stop where nothing above the noise is expected.
        until: Stop once another finetune is expected to be better than the best by less than this
            share of the noise; None for never.
        budget: What the whole study may cost, in finetunes; None for no cap.
    """

    second_seed: bool = True
    stop_when_flat: bool = True
    until: float | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        if self.until is not None and not self.until > 0:
            raise ValueError(f"until is {self.until}, expected a share of the noise above 0")
        if self.budget is not None and not self.budget >= 0:
            raise ValueError(f"budget is {self.budget}, expected a number of finetunes")


@dataclass(frozen=True)
class StudyDefinition:
    """What a study is about: tasks, model, and how both are finetuned, merged and scored.

    Attributes:
        tasks: The tasks, in the order of the task weights.
        model: The multitask model around the pretrained body.
        finetuning: Settings of task runs and real finetunes.
        posterior: How posteriors are made from the task runs.
        score: "mean", "relative", "worst", "worst_relative", "target:<task>", a function or a
            `Score`, see `make_score`; or "pareto": each task's metric is an objective, and the
            study looks for the Pareto front.
        constraints: Constraints on the tasks' true metrics: a number, the share of its single-task
            metric that every task must keep, or a sequence of `Constraint`.
        preview: How previews are evaluated.
        search: How the commands search; not part of the study's fingerprint.
        runs: By task, checkpoints that you already have; they replace the task runs and cost
            nothing. For a language model, a folder or an adapter of the same base; for tasks with
            heads, a file of tensors with the names of this model.

    Raises:
        TypeError: `constraints` is neither a number nor a sequence of `Constraint`.
        ValueError: tasks that don't fit together or to the model, metrics of which some are to be
            maximised and others minimised, a score that is not known, "pareto" for one task,
            constraints on no task, more parameters than the posteriors' family can take, an
            estimator that doesn't fit the task runs' optimizer.
    """

    tasks: Sequence[Task]
    model: MultitaskModel
    finetuning: FinetuneSettings = field(default_factory=FinetuneSettings)
    posterior: PosteriorSettings = field(default_factory=PosteriorSettings)
    score: str | Callable[[Mapping[str, float]], float] | Score = "mean"
    constraints: float | Sequence[Constraint] = ()
    preview: PreviewSettings = field(default_factory=PreviewSettings)
    search: SearchSettings = field(default_factory=SearchSettings)
    runs: Runs = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", check_tasks(self.tasks))
        check_task_names(self.names)
        if self.model.tasks != self.names:
            raise ValueError(
                f"the model was made for the tasks {list(self.model.tasks)}, but the definition "
                f"has {list(self.names)}"
            )
        object.__setattr__(self, "constraints", make_constraints(self.constraints, self.names))
        self._check_posterior()
        self._check_runs()
        senses = self.greater_is_better
        if self.is_pareto:
            if len(senses) < 2:
                raise ValueError("score 'pareto' needs at least two tasks, got one")
            return
        if len(set(senses.values())) > 1 and not isinstance(self.score, Score):
            raise ValueError(
                f"some tasks' metrics are to be maximised and others minimised ({senses}); give "
                f"a Score that says how they become one number"
            )
        score = make_score(self.score, self.names, greater_is_better=next(iter(senses.values())))
        object.__setattr__(self, "score", score)

    @property
    def names(self) -> tuple[str, ...]:
        """Task names, in order."""
        return tuple(task.name for task in self.tasks)

    @property
    def greater_is_better(self) -> dict[str, bool]:
        """By task, whether its metric is to be maximised."""
        return {task.name: task.metric.greater_is_better for task in self.tasks}

    @property
    def is_pareto(self) -> bool:
        """Whether each task is an objective of its own."""
        return isinstance(self.score, str) and self.score == PARETO

    @cached_property
    def settled_preview(self) -> PreviewSettings:
        """The preview settings, with heads "auto" made "resolved" or "merged"."""
        return settled(self.preview, self.model, self.tasks)

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """Direction of a study of one score."""
        assert isinstance(self.score, Score), "a Pareto study has several directions"
        return "maximize" if self.score.maximize else "minimize"

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Directions of the study, one per objective."""
        score = self.score if isinstance(self.score, Score) else None
        return Goal(score, self.greater_is_better, {}).directions

    @property
    def score_name(self) -> str:
        """The score's name."""
        return self.score.name if isinstance(self.score, Score) else str(self.score)

    def goal(self, alone: Mapping[str, float]) -> Goal:
        """What the study looks for; `alone` is each task's metric when finetuned on it only."""
        assert not isinstance(self.constraints, (int, float))
        limits = None
        if self.constraints:
            limits = Limits.of(self.constraints, alone, self.greater_is_better)
        score = self.score if isinstance(self.score, Score) else None
        return Goal(score, self.greater_is_better, alone, limits)

    def describe(self) -> dict[str, Any]:
        """The definition as JSON values: names, settings, hashes of data and parameters.

        Data and parameters are read through once.
        """
        return copy.deepcopy(self._described)

    @cached_property
    def _described(self) -> dict[str, Any]:
        assert not isinstance(self.constraints, (int, float))
        # What is not given has no part: studies made before there was such a choice stay valid.
        more: dict[str, Any] = {}
        if self.constraints:
            more["constraints"] = [constraint.name for constraint in self.constraints]
        if preview := self.settled_preview.describe():
            more["preview"] = preview
        if runs := self.given_runs:
            more["runs"] = {task: run_hash(task, run) for task, run in runs.items()}
        return {
            "tasks": [task.describe() for task in self.tasks],
            "body": self.model.describe(),
            "finetuning": self.finetuning.describe(),
            "posterior": asdict(self.posterior),
            "score": self.score_name,
            "direction": ", ".join(self.directions),
            **more,
        }

    def _check_runs(self) -> None:
        object.__setattr__(self, "runs", given_runs(self.runs, self.names))
        for task, run in self.given_runs.items():
            if run.curvature != "loss" or self.posterior.estimator == "ivon":
                what = "estimator='ivon'" if run.curvature == "loss" else "curvature"
                raise ValueError(
                    f"runs: task {task!r}: {what} of a given run is not read here: of the own "
                    f"training loop it is made from the loss (estimator='squared_gradients')"
                )

    @property
    def given_runs(self) -> dict[str, GivenRun]:
        """`runs`, each with its settings."""
        return given_runs(self.runs, self.names)

    def _check_posterior(self) -> None:
        posterior = self.posterior
        if posterior.estimator == "ivon" and self.finetuning.optimizer != "ivon":
            raise ValueError(
                f"estimator='ivon' takes the curvature from task runs with IVON, but they are "
                f"with optimizer={self.finetuning.optimizer!r}; use "
                f"FinetuneSettings(optimizer='ivon') or estimator='squared_gradients'"
            )
        shared = self.model.initial(self.model.shared_names())
        size = sum(tensor.numel() for tensor in shared.values())
        FAMILIES[posterior.family].check_size(size)
