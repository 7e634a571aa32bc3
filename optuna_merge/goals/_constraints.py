"""Constraints: what the tasks' true metrics must keep, whatever the score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Constraint:
    """A bound on one task's metric. Give exactly one of the three numbers.

    Attributes:
        task: The task's name.
        of_alone: The share of its single-task metric (when it is finetuned alone) that the task
            must keep, such as 0.95. A metric that is to be maximised must be at least this share
            times the single-task metric; a metric that is to be minimised at most the single-task
            metric divided by this share.
        at_least: Smallest value allowed, in the metric's unit.
        at_most: Largest value allowed.

    Raises:
        ValueError: none or several of the numbers, one that is not finite, or `of_alone` not
            above zero.

    Examples:
        >>> Constraint("news", of_alone=0.95).limit({"news": 0.8}, greater_is_better=True)
        (1.0, 0.76)
        >>> Constraint("news", at_least=0.9).name
        'news_at_least_0.9'
    """

    task: str
    of_alone: float | None = None
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        given = {k: v for k, v in self._numbers().items() if v is not None}
        if len(given) != 1:
            raise ValueError(
                f"a constraint on task {self.task!r} needs exactly one of of_alone, at_least and "
                f"at_most, got {', '.join(given) or 'none'}"
            )
        ((kind, number),) = given.items()
        if not math.isfinite(number) or (kind == "of_alone" and number <= 0):
            expected = "a number above zero" if kind == "of_alone" else "a finite number"
            raise ValueError(
                f"constraint on task {self.task!r}: {kind} must be {expected}, got {number}"
            )

    def _numbers(self) -> dict[str, float | None]:
        return {"of_alone": self.of_alone, "at_least": self.at_least, "at_most": self.at_most}

    @property
    def name(self) -> str:
        """What it is called in studies and reports, such as `news_of_alone_0.95`."""
        ((kind, number),) = ((k, v) for k, v in self._numbers().items() if v is not None)
        return f"{self.task}_{kind}_{number:.10g}"

    def limit(self, alone: Mapping[str, float], *, greater_is_better: bool) -> tuple[float, float]:
        """The sense, 1.0 for a floor and -1.0 for a ceiling, and the bound in the metric's unit.

        Raises:
            ValueError: a share of a single-task metric that is not above zero.
        """
        if self.at_least is not None:
            return 1.0, self.at_least
        if self.at_most is not None:
            return -1.0, self.at_most
        assert self.of_alone is not None
        if not alone[self.task] > 0:
            raise ValueError(
                f"constraint {self.name!r} needs a metric above zero for task {self.task!r} "
                f"alone, got {alone[self.task]:g}; use at_least or at_most"
            )
        if greater_is_better:
            return 1.0, self.of_alone * alone[self.task]
        return -1.0, alone[self.task] / self.of_alone


def make_constraints(
    choice: float | Sequence[Constraint], tasks: Sequence[str]
) -> tuple[Constraint, ...]:
    """The constraints that a definition names.

    Args:
        choice: Constraints; or one number, the share of its single-task metric that every task
            must keep.
        tasks: Task names in order.

    Raises:
        TypeError: something else.
        ValueError: a constraint on no task of the study, or the same one twice.
    """
    if isinstance(choice, (int, float)) and not isinstance(choice, bool):
        return tuple(Constraint(task, of_alone=float(choice)) for task in tasks)
    if not isinstance(choice, Sequence) or not all(isinstance(c, Constraint) for c in choice):
        raise TypeError(
            f"constraints must be a number (the share of its single-task metric that every task "
            f"must keep) or a sequence of Constraint, got {choice!r}"
        )
    names = [constraint.name for constraint in choice]
    for constraint in choice:
        if constraint.task not in tasks:
            raise ValueError(
                f"constraint {constraint.name!r}: no task {constraint.task!r} among {list(tasks)}"
            )
        if names.count(constraint.name) > 1:
            raise ValueError(f"constraint {constraint.name!r} is given more than once")
    return tuple(choice)


@dataclass(frozen=True)
class Limits:
    """Constraints with their bounds known: a function from metrics to constraint values.

    A value is how far the metric is beyond its bound, in the metric's unit: feasible is 0 or
    less, as in Optuna.

    Attributes:
        tasks: Task names, in the order of the metrics.
        names: Of the constraints.
        columns: For each constraint, the position of its task.
        senses: For each, 1.0 for a floor and -1.0 for a ceiling.
        bounds: For each, in the metric's unit.
    """

    tasks: tuple[str, ...]
    names: tuple[str, ...]
    columns: tuple[int, ...]
    senses: tuple[float, ...]
    bounds: tuple[float, ...]

    @classmethod
    def of(
        cls,
        constraints: Sequence[Constraint],
        alone: Mapping[str, float],
        greater_is_better: Mapping[str, bool],
    ) -> Limits:
        """Args are the constraints, and by task (in order) the metric alone and its sense."""
        tasks = tuple(greater_is_better)
        limits = [c.limit(alone, greater_is_better=greater_is_better[c.task]) for c in constraints]
        return cls(
            tasks,
            tuple(c.name for c in constraints),
            tuple(tasks.index(c.task) for c in constraints),
            tuple(sense for sense, _ in limits),
            tuple(bound for _, bound in limits),
        )

    def __call__(self, metrics: Array) -> Array:
        """Metrics `... x tasks` to constraint values `... x constraints`."""
        seen = np.asarray(metrics, dtype=float)[..., list(self.columns)]
        return np.asarray(np.array(self.senses) * (np.array(self.bounds) - seen))

    def values(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Constraint values by the constraint's name; infinite where a metric is NaN."""
        found = self(np.array([metrics[task] for task in self.tasks])).tolist()
        return {n: math.inf if math.isnan(v) else v for n, v in zip(self.names, found)}

    def describe(self) -> dict[str, Any]:
        """By the constraint's name: task, sense and bound, as JSON values."""
        return {
            name: {"task": self.tasks[column], "at_least" if sense > 0 else "at_most": bound}
            for name, column, sense, bound in zip(
                self.names, self.columns, self.senses, self.bounds
            )
        }


def total_violation(values: Array) -> Array:
    """Sum of what is beyond the bounds, `... x constraints` to `...`; NaN counts as infinite."""
    return np.asarray(np.nan_to_num(np.maximum(values, 0.0), nan=np.inf).sum(axis=-1))
