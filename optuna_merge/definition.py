"""What a study is about: everything that must be the same on all its workers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

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
from optuna_merge.previews import PreviewSettings, settled
from optuna_merge.tasks import Task, check_tasks
from optuna_merge.trials import check_task_names

FAMILIES = ("isotropic", "per_tensor", "diagonal", "low_rank", "kronecker", "full")
ESTIMATORS = ("squared_gradients", "ivon")
FULL_LIMIT = 8192
"""Parameters above which the full family is refused: one matrix then takes 512 MiB in fp64."""
RESPONSIBILITIES = {
    "task": FAMILIES,
    "layer": ("isotropic", "per_tensor", "diagonal", "kronecker"),
    "coordinate": ("isotropic", "per_tensor", "diagonal"),
    "fixed": FAMILIES,
}
"""How mixtures may be merged, and of which families."""


@dataclass(frozen=True)
class PosteriorSettings:
    """How the tasks' posteriors are made.

    Attributes:
        family: "isotropic" (the merge is the weighted mean of the parameters), "per_tensor"
            (weighted by each tensor's mean curvature), "diagonal" (weighted by curvature,
            elementwise), "low_rank" (the diagonal and the `rank` strongest directions),
            "kronecker" (K-FAC, a pair of factors per layer), or "full" (one matrix of all
            merged parameters, of which there may be `FULL_LIMIT`).
        estimator: Of the curvature. "squared_gradients": at the end of each task run, from
            `examples` examples. "ivon": what the task runs with `optimizer="ivon"` have
            estimated meanwhile, at no further cost; for "per_tensor" and "diagonal".
        components: Task runs, of consecutive seeds, per task; more than one make a mixture, and
            each task's own head is the mean of its runs'.
        responsibilities: How the mixture is merged; see `Mixture`.
        rank: Directions of the low-rank family; memory is this times the parameters.
        examples: Training examples per task for the curvature.
        exact_labels: Tasks with cross-entropy over at most so many classes sum over all labels,
            at one gradient a class, instead of drawing one. None by default: for the same number
            of gradients more examples with drawn labels are nearer to the exact diagonal, for 2
            to 10 classes (studies/digits/exact_labels.py), so sums pay once all examples are used.
        damping: Prior precision delta that is added to the curvature, on the scale of the
            averaged loss. None: chosen among multiples of the mean curvature by the weighted
            loss of merges on validation data.
        damping_examples: Validation examples per task for that choice.
        chunk_size: Per-example gradients that are held at once.
        seed: Of the examples and of the labels drawn from the model.
    """

    family: Literal["isotropic", "per_tensor", "diagonal", "low_rank", "kronecker", "full"] = (
        "diagonal"
    )
    estimator: Literal["squared_gradients", "ivon"] = "squared_gradients"
    components: int = 1
    responsibilities: Literal["task", "layer", "coordinate", "fixed"] = "fixed"
    rank: int = 8
    examples: int = 512
    exact_labels: int = 0
    damping: float | None = None
    damping_examples: int = 256
    chunk_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {self.family!r}")
        if self.estimator not in ESTIMATORS:
            raise ValueError(
                f"estimator must be one of {', '.join(ESTIMATORS)}, got {self.estimator!r}"
            )
        if self.estimator == "ivon" and self.family not in ("per_tensor", "diagonal"):
            raise ValueError(
                f"estimator='ivon' gives one number per parameter, for the families per_tensor "
                f"and diagonal, got family={self.family!r}; use estimator='squared_gradients'"
            )
        if self.responsibilities not in RESPONSIBILITIES:
            raise ValueError(
                f"responsibilities must be one of {', '.join(RESPONSIBILITIES)}, got "
                f"{self.responsibilities!r}"
            )
        allowed = RESPONSIBILITIES[self.responsibilities]
        if self.components > 1 and self.family not in allowed:
            raise ValueError(
                f"responsibilities={self.responsibilities!r} need parts that are independent, "
                f"which those of family={self.family!r} are not; use one of {', '.join(allowed)}, "
                f"or responsibilities='task' or 'fixed'"
            )
        for name in ("components", "rank", "examples", "damping_examples", "chunk_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.exact_labels < 0:
            raise ValueError(f"exact_labels must not be negative, got {self.exact_labels}")
        if self.damping is not None and not self.damping > 0:
            raise ValueError(f"damping must be positive, got {self.damping}")

    @property
    def label(self) -> str:
        """Its short name: the family, and what of mixtures and estimators isn't the default."""
        parts: list[str] = [self.family]
        if self.components > 1:
            parts += [str(self.components), self.responsibilities]
        if self.estimator != "squared_gradients":
            parts.append(self.estimator)
        return ":".join(parts)


@dataclass(frozen=True)
class StudyDefinition:
    """Tasks, model, and how they are finetuned, merged and scored.

    Attributes:
        tasks: The tasks, in the order of the task weights.
        model: The multitask model around the pretrained body.
        finetuning: Settings of task runs and real multitask runs alike.
        posterior: How posteriors are made from the task runs.
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
            estimator that the task runs don't serve.
    """

    tasks: Sequence[Task]
    model: MultitaskModel
    finetuning: FinetuneSettings = field(default_factory=FinetuneSettings)
    posterior: PosteriorSettings = field(default_factory=PosteriorSettings)
    score: str | Callable[[Mapping[str, float]], float] | Score = "mean"
    constraints: float | Sequence[Constraint] = ()
    preview: PreviewSettings = field(default_factory=PreviewSettings)

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
        return {
            "tasks": [task.describe() for task in self.tasks],
            "body": self.model.describe(),
            "finetuning": self.finetuning.describe(),
            "posterior": asdict(self.posterior),
            "score": self.score_name,
            "direction": ", ".join(self.directions),
            **more,
        }

    def _check_posterior(self) -> None:
        posterior = self.posterior
        if posterior.estimator == "ivon" and self.finetuning.optimizer != "ivon":
            raise ValueError(
                f"estimator='ivon' takes the curvature from task runs with IVON, but they are "
                f"with optimizer={self.finetuning.optimizer!r}; use "
                f"FinetuneSettings(optimizer='ivon') or estimator='squared_gradients'"
            )
        if posterior.family == "full":
            shared = self.model.initial(self.model.shared_names())
            size = sum(tensor.numel() for tensor in shared.values())
            if size > FULL_LIMIT:
                raise ValueError(
                    f"family='full' keeps a matrix of {size} x {size} numbers per task, "
                    f"{8 * size**2 / 2**30:.1f} GiB each in fp64, for the {size} merged "
                    f"parameters; at most {FULL_LIMIT} are allowed: merge fewer (trainable="
                    f"LastLayers(n) or Matching(regex)), or use family='low_rank' or 'kronecker'"
                )
