"""What a study is about: everything that must be the same on all its workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from optuna_merge.finetuning import FinetuneSettings
from optuna_merge.models import MultitaskModel
from optuna_merge.previews import PreviewSettings
from optuna_merge.scores import Score, make_score
from optuna_merge.tasks import Task, check_tasks

FAMILIES = ("isotropic", "diagonal", "low_rank", "kronecker")
RESPONSIBILITIES = ("task", "layer", "coordinate", "fixed")


@dataclass(frozen=True)
class PosteriorSettings:
    """How the tasks' posteriors are made.

    Attributes:
        family: "isotropic" (the merge is the weighted mean of the parameters), "diagonal"
            (weighted by curvature, elementwise), "low_rank" (the diagonal and the `rank`
            strongest directions), or "kronecker" (K-FAC, a pair of factors per layer).
        components: Task runs, of consecutive seeds, per task; more than one make a mixture, and
            each task's own head is the mean of its runs'.
        responsibilities: How the mixture is merged; see `Mixture`.
        rank: Directions of the low-rank family; memory is this times the parameters.
        examples: Training examples per task for the curvature.
        damping: Prior precision delta that is added to the curvature, on the scale of the
            averaged loss. None: chosen among multiples of the mean curvature by the weighted
            loss of merges on validation data.
        damping_examples: Validation examples per task for that choice.
        chunk_size: Per-example gradients that are held at once.
        seed: Of the examples and of the labels drawn from the model.
    """

    family: Literal["isotropic", "diagonal", "low_rank", "kronecker"] = "diagonal"
    components: int = 1
    responsibilities: Literal["task", "layer", "coordinate", "fixed"] = "fixed"
    rank: int = 8
    examples: int = 512
    damping: float | None = None
    damping_examples: int = 256
    chunk_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {self.family!r}")
        if self.responsibilities not in RESPONSIBILITIES:
            raise ValueError(
                f"responsibilities must be one of {', '.join(RESPONSIBILITIES)}, got "
                f"{self.responsibilities!r}"
            )
        for name in ("components", "rank", "examples", "damping_examples", "chunk_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.damping is not None and not self.damping > 0:
            raise ValueError(f"damping must be positive, got {self.damping}")


@dataclass(frozen=True)
class StudyDefinition:
    """Tasks, model, and how they are finetuned, merged and scored.

    Attributes:
        tasks: The tasks, in the order of the task weights.
        model: The multitask model around the pretrained body.
        finetuning: Settings of task runs and real multitask runs alike.
        posterior: How posteriors are made from the task runs.
        score: See `make_score`.
        preview: How previews are evaluated.

    Raises:
        ValueError: tasks that don't fit together or to the model, metrics of which some are to be
            maximised and others minimised, a score that is not known.
    """

    tasks: Sequence[Task]
    model: MultitaskModel
    finetuning: FinetuneSettings = field(default_factory=FinetuneSettings)
    posterior: PosteriorSettings = field(default_factory=PosteriorSettings)
    score: str | Callable[[Mapping[str, float]], float] | Score = "mean"
    preview: PreviewSettings = field(default_factory=PreviewSettings)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", check_tasks(self.tasks))
        if self.model.tasks != self.names:
            raise ValueError(
                f"the model was made for the tasks {list(self.model.tasks)}, but the definition "
                f"has {list(self.names)}"
            )
        senses = {task.name: task.metric.greater_is_better for task in self.tasks}
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
    def direction(self) -> Literal["maximize", "minimize"]:
        """Direction of the study."""
        assert isinstance(self.score, Score)
        return "maximize" if self.score.maximize else "minimize"

    def score_of(self, metrics: Mapping[str, float], alone: Mapping[str, float]) -> float:
        """The score; `alone` holds each task's metric when finetuned on that task only."""
        assert isinstance(self.score, Score)
        return self.score(metrics, alone)

    def describe(self) -> dict[str, Any]:
        """The definition as JSON values: names, settings, hashes of data and parameters."""
        assert isinstance(self.score, Score)
        described = {
            "tasks": [task.describe() for task in self.tasks],
            "body": self.model.describe(),
            "finetuning": self.finetuning.describe(),
            "posterior": asdict(self.posterior),
            "score": self.score.name,
            "direction": self.direction,
        }
        if preview := self.preview.describe():
            described["preview"] = preview
        return described
