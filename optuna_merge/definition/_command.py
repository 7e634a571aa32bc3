"""What a study of a training program is about, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna_merge.definition._definition import SearchSettings
from optuna_merge.goals import PARETO, Constraint, Direction


@dataclass(frozen=True)
class CommandDefinition:
    """A study of a training command: the command, its tasks, its score and constraints.

    Attributes:
        search: How the commands search. All others are arguments of `optuna_merge.from_command`.
    """

    train: str | Sequence[str]
    evaluate: str | Sequence[str]
    tasks: Sequence[str]
    steps: int
    unit: str | Mapping[str, Any]
    metric: str = "{task}"
    checkpoint: str = "model"
    seed: int = 0
    time_limit: float | None = None
    grace: float = 30.0
    greater_is_better: bool = True
    about: Mapping[str, Any] = field(default_factory=dict)
    runs: Mapping[str, Path] = field(default_factory=dict)
    score: str = "mean"
    constraints: float | Sequence[Constraint] = ()
    search: SearchSettings = field(default_factory=SearchSettings)

    @property
    def names(self) -> tuple[str, ...]:
        """Task names, in order."""
        return tuple(self.tasks)

    @property
    def is_pareto(self) -> bool:
        """Whether each task is an objective of its own."""
        return self.score == PARETO

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Directions of the study, one per objective."""
        one: Direction = "maximize" if self.greater_is_better else "minimize"
        return (one,) * (len(self.tasks) if self.is_pareto else 1)

    def describe(self) -> dict[str, Any]:
        """What can be compared with a study before anything runs, as JSON values."""
        return {"score": self.score, "greater_is_better": self.greater_is_better}
