"""The damping of posteriors: between simple averaging and Fisher merging."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from optuna_merge.posteriors import Posterior

MULTIPLES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)
"""Multiples of the mean curvature that are tried."""


@dataclass(frozen=True)
class Damping:
    """A choice of damping and what it was chosen from.

    Attributes:
        value: The damping delta, on the scale of the averaged loss's curvature.
        sweep: Mean weighted loss on held-out data, by damping; empty if it was given.
        seconds: Time that the choice took.
    """

    value: float
    sweep: dict[float, float]
    seconds: float


def candidates(curvatures: Mapping[str, Posterior]) -> list[float]:
    """`MULTIPLES` of the mean curvature over tasks and parameters.

    Args:
        curvatures: Undamped posteriors, by task.

    Raises:
        ValueError: all curvatures are zero.
    """
    mean = sum(posterior.mean_curvature() for posterior in curvatures.values()) / len(curvatures)
    if not mean > 0:
        raise ValueError(
            f"the curvature of tasks {sorted(curvatures)} is zero everywhere; are the task runs "
            f"so sure of all examples? Use more examples or the isotropic family"
        )
    return [multiple * mean for multiple in MULTIPLES]


def trial_weightings(tasks: Sequence[str], emphasis: float = 0.6) -> list[dict[str, float]]:
    """Interior weights to judge merges at: uniform, and `emphasis` on each task in turn."""
    count = len(tasks)
    if count == 1:
        return [{tasks[0]: 1.0}]
    weightings = [dict.fromkeys(tasks, 1 / count)]
    rest = (1 - emphasis) / (count - 1)
    weightings += [{t: emphasis if t == task else rest for t in tasks} for task in tasks]
    return weightings


def choose(
    values: Sequence[float], weighted_loss: Callable[[float], float]
) -> tuple[float, dict[float, float]]:
    """The value of the smallest loss (of equal ones the largest: nearer to averaging)."""
    sweep = {value: weighted_loss(value) for value in values}
    best = min(sweep, key=lambda value: (sweep[value], -value))
    return best, sweep
