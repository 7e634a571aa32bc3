"""All checks of a merge, before any work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from optuna_merge.posteriors import (
    Coupled,
    Gaussian,
    Mixture,
    Posterior,
    check_factors,
    check_posteriors,
)

Posteriors = Sequence[Posterior] | Mapping[str, Posterior]
"""One posterior per task: in task order, or by task name."""


@dataclass(frozen=True)
class Problem:
    """A merge that passed all checks; `vanishing`: some precision that counts is zero."""

    posteriors: list[Posterior]
    weights: tuple[float, ...]
    vanishing: bool

    def gaussians(self) -> tuple[list[Gaussian], tuple[float, ...]] | None:
        """All terms with their weights; None for mixtures."""
        terms = [term for term in self.posteriors if not isinstance(term, Mixture)]
        return (terms, self.weights) if terms else None


def check_merge(posteriors: Posteriors, weights: Weights) -> Problem:
    """Check everything, and put it into task order."""
    if isinstance(posteriors, Mapping):
        tasks, terms, named = list(posteriors), list(posteriors.values()), True
    else:
        tasks, terms, named = [str(k) for k in range(len(posteriors))], list(posteriors), False
    if not terms:
        raise ValueError("no posteriors to merge; expected at least one")
    labels = [f"task {task!r}" if named else f"task {task}" for task in tasks]
    given = task_weights(weights, tasks, named=named)
    everyone = dict(zip(labels, terms))
    used = [who for who, weight in zip(everyone, given) if weight]
    positive = check_posteriors(everyone, used)
    _check_family(everyone)
    _check_positivity(everyone, given)
    if len(used) > 1:
        check_factors({who: everyone[who] for who in used})
    return Problem(terms, given, vanishing=not positive)


def _check_family(tasks: Mapping[str, Posterior]) -> None:
    """One family, with the same components and responsibilities."""
    kinds = {label: _kind(task) for label, task in tasks.items()}
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"{kind} for {label}" for label, kind in kinds.items())
        raise TypeError(f"posteriors of one merge must be of one family, got {listed}")


def _kind(posterior: Posterior) -> str:
    if not isinstance(posterior, Mixture):
        return type(posterior).__name__
    families = "/".join(sorted({type(c).__name__ for c in posterior.components}))
    return f"Mixture of {families}, responsibilities={posterior.responsibilities!r},"


def _check_positivity(tasks: Mapping[str, Posterior], weights: Sequence[float]) -> None:
    """Refuse negative weights under which a merged precision may not be positive."""
    if min(weights) >= 0:
        return
    numbers = _numbers(list(tasks.values()))
    if numbers is None:
        label, weight = next(of for of in zip(tasks, weights) if of[1] < 0)
        raise ValueError(
            f"the weight of {label} is {weight:g}; negative weights could make a merged "
            f"precision negative: only isotropic posteriors allow them"
        )
    for name, precisions in numbers.items():
        check_sum(name, weights, precisions)


def check_sum(name: str, weights: Sequence[float], precisions: Sequence[float]) -> None:
    """Refuse weights under which a tensor's merged precision, a number, is not positive."""
    parts = [w * precision for w, precision in zip(weights, precisions) if w]
    if any(parts) and math.fsum(parts) <= 0:
        raise ValueError(
            f"with the weights {tuple(weights)} the merged precision of {name!r} is "
            f"{math.fsum(parts):g}; it must be positive: use larger weights"
        )


def _numbers(terms: Sequence[Posterior]) -> dict[str, list[float]] | None:
    """By name the terms' precisions, if all are single numbers a tensor; else None."""
    gaussians = [t for t in terms if not isinstance(t, Mixture | Coupled)]
    if len(gaussians) < len(terms):
        return None
    numbers: dict[str, list[float]] = {}
    for name in gaussians[0].mean:
        found = [term.elementwise(name) for term in gaussians]
        numbers[name] = [value for value in found if isinstance(value, float)]
        if len(numbers[name]) < len(terms):
            return None
    return numbers


Weights = Sequence[float] | Mapping[str, float] | Tensor
"""One weight per task: in task order, or by task name."""

_EXACT = 1e-12
_NEAR_SIMPLEX = 1e-4
"""How far from 1 a sum of weights may be that were rounded when they were written down."""


def task_weights(weights: Weights, tasks: Sequence[str], *, named: bool) -> tuple[float, ...]:
    """The weights as floats in task order; by name only where the posteriors are `named`.

    They add up to 1; those that miss it by up to 1e-4, as if they were written down with a few
    digits, are divided by their sum.
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
    total = math.fsum(values)
    if abs(1.0 - total) > _NEAR_SIMPLEX:
        raise ValueError(
            f"the weights add up to {total!r}, expected 1: divide them by their sum, or give the "
            f"prior as one more posterior, of the weight that is missing"
        )
    return values if abs(1.0 - total) <= _EXACT else tuple(value / total for value in values)
