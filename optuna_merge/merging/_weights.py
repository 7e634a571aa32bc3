"""Task weights as they are given to a merge: checked, in task order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

Weights = Sequence[float] | Mapping[str, float] | Tensor
"""One weight per task: in task order, or by task name."""

_EXACT = 1e-12
_NEAR_SIMPLEX = 1e-4
"""How far from 1 a sum of weights may be that were rounded when they were written down."""


def task_weights(weights: Weights, tasks: Sequence[str], *, named: bool) -> tuple[float, ...]:
    """The weights as floats in task order; by name only where the posteriors are `named`."""
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


def with_prior(weights: Sequence[float], *, has_prior: bool) -> tuple[float, ...]:
    """The weights of the tasks, and the prior's behind them: 1 - their sum.

    Rounding counts as zero. Without a prior weights that miss 1 by up to 1e-4, as those that were
    written down with a few digits, are divided by their sum.
    """
    total = math.fsum(weights)
    rest = 1.0 - total
    if abs(rest) <= _EXACT:
        return (*weights, 0.0)
    if has_prior:
        return (*weights, rest)
    if abs(rest) > _NEAR_SIMPLEX:
        raise ValueError(
            f"the weights add up to {total!r}; off the simplex the merge depends on the prior: "
            f"pass prior=..., or divide the weights by their sum"
        )
    return (*(weight / total for weight in weights), 0.0)
