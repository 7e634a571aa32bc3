"""The score of a trial: one number from the tasks' metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

PARETO = "pareto"
"""The choice without a single score: each task's metric is an objective of its own."""

Metrics = Mapping[str, float]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """How the tasks' metrics become the score of a trial.

    Attributes:
        name: The score's name in the study's definition.
        function: `(metrics, alone) -> score`. Both arguments map each task to a metric; `alone`
            holds the metrics of the task runs, in which the model is finetuned on one task only.
        maximize: Whether larger scores are better: the direction of the study.
    """

    name: str
    function: Callable[[Metrics, Metrics], float]
    maximize: bool = True

    def __call__(self, metrics: Metrics, alone: Metrics) -> float:
        return float(self.function(metrics, alone))

    def over(self, metrics: Array, alone: Metrics) -> Array:
        """The score of many points at once: metrics of shape `... x tasks` to scores `...`.

        Tasks are in the order of `alone`. Functions of plain arithmetic are called once, with an
        array per task; others once a point.
        """
        columns: dict[str, Any] = {name: metrics[..., i] for i, name in enumerate(alone)}
        try:
            scores = np.asarray(self.function(columns, alone), dtype=float)
            if scores.shape == metrics.shape[:-1]:
                return scores
        except (TypeError, ValueError):
            pass
        flat = metrics.reshape(-1, metrics.shape[-1])
        each = [self(dict(zip(alone, row)), alone) for row in flat.tolist()]
        return np.array(each, dtype=float).reshape(metrics.shape[:-1])


def make_score(
    choice: str | Callable[[Metrics], float] | Score,
    tasks: Sequence[str],
    *,
    greater_is_better: bool = True,
) -> Score:
    """The score that a definition names.

    Args:
        choice: "mean" of the metrics; "relative", the mean of metric / metric of the task alone;
            "worst", the worst metric; "worst_relative", the worst of metric / metric alone;
            "target:<task>", that task's metric, the others being auxiliaries; a function of the
            metrics by task; or a `Score`.
        tasks: Task names in order.
        greater_is_better: Whether the tasks' metrics are to be maximised.

    Raises:
        ValueError: another word, or a target that is no task.

    Examples:
        >>> score = make_score("relative", ["news", "reviews"])
        >>> score({"news": 0.6, "reviews": 0.25}, alone={"news": 0.8, "reviews": 0.5})
        0.625
        >>> score = make_score(lambda metrics: min(metrics.values()), ["news", "reviews"])
        >>> score({"news": 0.72, "reviews": 0.45}, alone={})
        0.45
    """
    pick = np.minimum if greater_is_better else np.maximum

    def worst(values: Iterable[Any]) -> Any:
        return reduce(pick, values)

    if isinstance(choice, Score):
        return choice
    if callable(choice):
        # Not its repr, which may hold an address: this name stands in the fingerprint.
        name = getattr(choice, "__qualname__", type(choice).__qualname__)
        return Score(name, lambda metrics, alone: choice(metrics), greater_is_better)
    if choice.startswith("target:"):
        target = choice.removeprefix("target:")
        if target not in tasks:
            raise ValueError(f"score {choice!r}: no task {target!r} among {list(tasks)}")
        return Score(choice, lambda metrics, alone: metrics[target], greater_is_better)
    functions: dict[str, Callable[[Metrics, Metrics], Any]] = {
        "mean": lambda metrics, alone: _mean(metrics.values()),
        "relative": lambda metrics, alone: _mean(_relative(metrics, alone)),
        "worst": lambda metrics, alone: worst(metrics.values()),
        "worst_relative": lambda metrics, alone: worst(_relative(metrics, alone)),
    }
    if choice not in functions:
        raise ValueError(
            f"score must be one of {sorted(functions)}, 'target:<task>', 'pareto' or a function "
            f"of the metrics, got {choice!r}"
        )
    return Score(choice, functions[choice], greater_is_better)


def _mean(values: Iterable[Any]) -> Any:
    numbers = list(values)
    return sum(numbers) / len(numbers)


def _relative(metrics: Metrics, alone: Metrics) -> list[float]:
    # Ratios of negative numbers would turn better into worse.
    bad = [task for task in metrics if not alone[task] > 0]
    if bad:
        raise ValueError(
            f"a relative score needs a metric above zero for task {bad[0]!r} alone, got "
            f"{alone[bad[0]]:g}; choose another score or metric"
        )
    return [metrics[task] / alone[task] for task in metrics]
