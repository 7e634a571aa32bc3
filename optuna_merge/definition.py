"""What a study is about: everything that must be the same on all its workers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from optuna_merge.constraints import Constraint, make_constraints
from optuna_merge.finetuning import FinetuneSettings
from optuna_merge.models import MultitaskModel
from optuna_merge.posteriors import FAMILIES
from optuna_merge.posteriors import PosteriorSettings as PosteriorSettings
from optuna_merge.previews import PreviewSettings, RefinementSettings, racing_obstacle, settled
from optuna_merge.scores import PARETO, Score, make_score
from optuna_merge.tasks import Task, check_tasks


@dataclass(frozen=True)
class StudyDefinition:
    """Tasks, model, and how they are finetuned, merged and scored.

    Attributes:
        tasks: The tasks, in the order of the task weights.
        model: The multitask model around the pretrained body.
        finetuning: Settings of task runs and real multitask runs alike.
        posterior: How posteriors are made from the task runs.
        compare: Other posteriors, of the same task runs, that preview each truth, too, so that
            `optuna-merge diagnose` and the report tell which family previews this study best.
            A merge and an evaluation per truth and family; they stay in memory.
        refinement: Refined previews between the merge and a real finetune; None: there are none.
        start: Where real finetunes start: at the "pretrained" body, as task runs do, so that a
            truth is what its weights mean by definition; or at the "merged" parameters, which
            needs fewer steps, but builds on the task runs' own.
        score: See `make_score`; or "pareto": one objective per task, its metric, and the study
            looks for the Pareto front.
        constraints: What the tasks' true metrics must keep: a number, the share of its
            single-task metric that every task must keep, or a sequence of `Constraint`.
        preview: How previews are evaluated.

    Raises:
        TypeError: constraints that are none.
        ValueError: tasks that don't fit together or to the model, metrics of which some are to be
            maximised and others minimised, a score that is not known, "pareto" for one task,
            constraints on no task, more parameters than the posteriors' family can take, an
            estimator that the task runs don't serve, posteriors to compare that have one label or
            need more task runs.
    """

    tasks: Sequence[Task]
    model: MultitaskModel
    finetuning: FinetuneSettings = field(default_factory=FinetuneSettings)
    posterior: PosteriorSettings = field(default_factory=PosteriorSettings)
    compare: Sequence[PosteriorSettings] = ()
    refinement: RefinementSettings | None = None
    start: Literal["pretrained", "merged"] = "pretrained"
    score: str | Callable[[Mapping[str, float]], float] | Score = "mean"
    constraints: float | Sequence[Constraint] = ()
    preview: PreviewSettings = field(default_factory=PreviewSettings)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", check_tasks(self.tasks))
        if self.start not in ("pretrained", "merged"):
            raise ValueError(f"start must be 'pretrained' or 'merged', got {self.start!r}")
        if self.model.tasks != self.names:
            raise ValueError(
                f"the model was made for the tasks {list(self.model.tasks)}, but the definition "
                f"has {list(self.names)}"
            )
        object.__setattr__(self, "constraints", make_constraints(self.constraints, self.names))
        object.__setattr__(self, "compare", tuple(self.compare))
        for posterior in (self.posterior, *self.compare):
            self._check_posterior(posterior)
        self._check_compared()
        senses = self.greater_is_better
        if self.is_pareto:
            if len(senses) < 2:
                raise ValueError("score 'pareto' needs at least two tasks, got one")
            if self.refinement is not None:
                raise ValueError(
                    "score 'pareto' with a refinement: Optuna takes no reports of refined "
                    "previews in studies of several objectives; leave refinement out"
                )
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
    def refinement_steps(self) -> tuple[int, ...]:
        """Training steps from the merge of the refined previews; none without refinement."""
        return () if self.refinement is None else self.refinement.steps

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
    def racing_obstacle(self) -> str | None:
        """Why its previews can't be raced, or None."""
        if self.is_pareto or self.constraints:
            return (
                "previews can't be raced: the best score alone does not say what is promoted in "
                "a study with constraints or of several objectives"
            )
        return racing_obstacle(self.model, self.tasks)

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """Direction of a study of one score."""
        assert isinstance(self.score, Score), "a Pareto study has several directions"
        return "maximize" if self.score.maximize else "minimize"

    @property
    def directions(self) -> tuple[Literal["maximize", "minimize"], ...]:
        """Directions of the study, one per objective."""
        if self.is_pareto:
            return tuple(
                "maximize" if greater else "minimize"
                for greater in self.greater_is_better.values()
            )
        return (self.direction,)

    @property
    def score_name(self) -> str:
        """The score's name."""
        return self.score.name if isinstance(self.score, Score) else str(self.score)

    def score_of(self, metrics: Mapping[str, float], alone: Mapping[str, float]) -> float:
        """The score; `alone` holds each task's metric when finetuned on that task only."""
        assert isinstance(self.score, Score)
        return self.score(metrics, alone)

    def values_of(
        self, metrics: Mapping[str, float], alone: Mapping[str, float]
    ) -> tuple[float, ...]:
        """The objective values: the score, or in a Pareto study each task's metric."""
        if self.is_pareto:
            return tuple(metrics[name] for name in self.names)
        return (self.score_of(metrics, alone),)

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
        if self.refinement is not None:
            more["refinement"] = self.refinement.describe()
        if self.compare:
            more["compare"] = [asdict(posterior) for posterior in self.compare]
        if self.start != "pretrained":
            more["start"] = self.start
        if self.constraints:
            more["constraints"] = [constraint.name for constraint in self.constraints]
        if preview := self.settled_preview.describe():
            more["preview"] = preview
        return {
            "tasks": [task.describe() for task in self.tasks],
            "body": self.model.describe(),
            "finetuning": self.finetuning.describe(),
            "posterior": asdict(self.posterior),
            "score": self.score_name,
            "direction": ", ".join(self.directions),
            **more,
        }

    def _check_posterior(self, posterior: PosteriorSettings) -> None:
        if posterior.estimator == "ivon" and self.finetuning.optimizer != "ivon":
            raise ValueError(
                f"estimator='ivon' takes the curvature from task runs with IVON, but they are "
                f"with optimizer={self.finetuning.optimizer!r}; use "
                f"FinetuneSettings(optimizer='ivon') or estimator='squared_gradients'"
            )
        shared = self.model.initial(self.model.shared_names())
        size = sum(tensor.numel() for tensor in shared.values())
        FAMILIES[posterior.family].check_size(size)

    def _check_compared(self) -> None:
        labels = [posterior.label for posterior in (self.posterior, *self.compare)]
        twice = [label for label in labels if labels.count(label) > 1]
        if twice:
            raise ValueError(
                f"compare and posterior have {twice[0]!r} more than once; compare takes other "
                f"families, or other mixtures and estimators of one"
            )
        runs = self.posterior.components
        for posterior in self.compare:
            if posterior.components > runs:
                raise ValueError(
                    f"compare: {posterior.label} needs {posterior.components} runs of each task, "
                    f"but posterior={self.posterior.label} has only {runs}; posteriors are "
                    f"compared on the same task runs"
                )
