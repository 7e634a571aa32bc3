"""What a study of a training program is about, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna_merge.definition._definition import SearchSettings
from optuna_merge.goals import PARETO, Constraint, Direction


@dataclass(frozen=True)
class CommandDefinition:
    """A study of a training command: the command, its tasks, its score and constraints.

    Attributes:
        names: Task names, in order.
        given: Further arguments of `optuna_merge.from_command`, by name.
        greater_is_better: As there.
        score: As there.
        constraints: As there.
        search: How the commands search.
    """

    names: tuple[str, ...]
    given: Mapping[str, Any]
    greater_is_better: bool = True
    score: str = "mean"
    constraints: float | Sequence[Constraint] = ()
    search: SearchSettings = field(default_factory=SearchSettings)

    @property
    def is_pareto(self) -> bool:
        """Whether each task is an objective of its own."""
        return self.score == PARETO

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Directions of the study, one per objective."""
        one: Direction = "maximize" if self.greater_is_better else "minimize"
        return (one,) * (len(self.names) if self.is_pareto else 1)

    def describe(self) -> dict[str, Any]:
        """What can be compared with a study before anything runs, as JSON values."""
        return {"score": self.score, "greater_is_better": self.greater_is_better}
