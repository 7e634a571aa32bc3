"""Task weights as they are given to a merge: checked, in task order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

Weights = Sequence[float] | Mapping[str, float] | Tensor
"""One weight per task: in task order, or by task name."""

_ON_SIMPLEX = 1e-6


def task_weights(weights: Weights, tasks: Sequence[str], *, named: bool) -> tuple[float, ...]:
    """The weights as floats in task order.

    Args:
        weights: As the user gave them.
        tasks: The words that name each task in an error, or the tasks' names if `named`.
        named: Whether the posteriors were given by name, so that weights may be, too.

    Raises:
        TypeError: weights by name for posteriors without names.
        ValueError: the wrong number or names of weights, NaN or an infinity.
    """
    if isinstance(weights, Mapping):
        if not named:
            raise TypeError(
                "weights are given by task name, but posteriors are not: give both as mappings"
            )
        if weights.keys() != set(tasks):
            raise ValueError(
                f"weights are for {sorted(weights)}, but posteriors are for {sorted(tasks)}"
            )
        weights = [weights[task] for task in tasks]
    values = tuple(float(weight) for weight in weights)
    if len(values) != len(tasks):
        raise ValueError(f"{len(values)} weights for {len(tasks)} posteriors; expected one each")
    for task, value in zip(tasks, values):
        if not math.isfinite(value):
            raise ValueError(f"the weight of task {task!r} is {value}; weights must be finite")
    return values


def prior_weight(weights: Sequence[float], *, has_prior: bool) -> float:
    """The prior's weight, 1 - sum of the task weights; rounding counts as zero.

    Raises:
        ValueError: the weights do not add up to 1 and there is no prior.
    """
    rest = 1.0 - math.fsum(weights)
    if not has_prior and abs(rest) > _ON_SIMPLEX:
        raise ValueError(
            f"the weights add up to {1.0 - rest:g}; off the simplex the merge depends on the "
            f"prior: pass prior=..., or divide the weights by their sum"
        )
    return rest if has_prior and abs(rest) > 1e-12 else 0.0
