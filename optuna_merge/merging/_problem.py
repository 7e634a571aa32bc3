"""All checks of a merge, before any work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optuna_merge.posteriors import (
    Coupled,
    Gaussian,
    Mixture,
    Posterior,
    check_factors,
    check_posteriors,
    elementwise,
)

Posteriors = Sequence[Posterior] | Mapping[str, Posterior]
"""One posterior per task: in task order, or by task name."""


@dataclass(frozen=True)
class Problem:
    """A merge that passed all checks; `vanishing`: some precision that counts is zero."""

    posteriors: list[Posterior]
    prior: Gaussian | None
    weights: tuple[float, ...]
    vanishing: bool

    def gaussians(self) -> tuple[list[Gaussian], tuple[float, ...]] | None:
        """All terms, the prior among them, with their weights; None for mixtures."""
        terms: list[Gaussian] = []
        for posterior in self.posteriors:
            if isinstance(posterior, Mixture):
                return None
            terms.append(posterior)
        if self.prior is None:
            return terms, self.weights[:-1]
        return [*terms, self.prior], self.weights


def check_merge(posteriors: Posteriors, weights: Weights, prior: Posterior | None) -> Problem:
    """Check everything, and put it into task order."""
    if isinstance(posteriors, Mapping):
        tasks, terms, named = list(posteriors), list(posteriors.values()), True
    else:
        tasks, terms, named = [str(k) for k in range(len(posteriors))], list(posteriors), False
    if not terms:
        raise ValueError("no posteriors to merge; expected at least one")
    labels = [f"task {task!r}" if named else f"task {task}" for task in tasks]
    given = task_weights(weights, tasks, named=named)
    full = with_prior(given, has_prior=prior is not None)
    if isinstance(prior, Mixture):
        raise TypeError("the prior is a Mixture; expected one of the Gaussian families")
    everyone = dict(zip(labels, terms))
    together = everyone if prior is None else {**everyone, "prior": prior}
    used = [who for who, weight in zip(together, full) if weight]
    positive = check_posteriors(together, used)
    _check_family(everyone, prior)
    _check_positivity(everyone, prior, full)
    if len(used) > 1:
        check_factors({who: together[who] for who in used})
    return Problem(terms, prior, full, vanishing=not positive)


def _check_family(tasks: Mapping[str, Posterior], prior: Gaussian | None) -> None:
    """One family, with the same components and responsibilities; a prior that goes with it."""
    kinds = {label: _kind(task) for label, task in tasks.items()}
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"{kind} for {label}" for label, kind in kinds.items())
        raise TypeError(f"posteriors of one merge must be of one family, got {listed}")
    if not isinstance(prior, Coupled):
        return
    first = next(iter(tasks.values()))
    term = first.components[0] if isinstance(first, Mixture) else first
    if isinstance(term, Coupled) and type(term) is not type(prior):
        raise TypeError(
            f"a {type(prior).__name__} as prior does not go with {type(term).__name__}: use an "
            f"isotropic or diagonal prior, or one of the posteriors' own family"
        )


def _kind(posterior: Posterior) -> str:
    if not isinstance(posterior, Mixture):
        return type(posterior).__name__
    families = "/".join(sorted({type(c).__name__ for c in posterior.components}))
    return f"Mixture of {families}, responsibilities={posterior.responsibilities!r},"


def _check_positivity(
    tasks: Mapping[str, Posterior], prior: Gaussian | None, weights: Sequence[float]
) -> None:
    """Refuse negative weights under which a merged precision may not be positive."""
    if min(weights) >= 0:
        return
    numbers = _numbers([*tasks.values(), *([] if prior is None else [prior])])
    if numbers is not None:
        for name, precisions in numbers.items():
            parts = [w * precision for w, precision in zip(weights, precisions) if w]
            if any(parts) and math.fsum(parts) <= 0:
                raise ValueError(
                    f"with the weights {tuple(weights)} the merged precision of {name!r} is "
                    f"{math.fsum(parts):g}; it must be positive: use larger weights"
                )
        return
    for label, weight in zip(tasks, weights):
        if weight < 0:
            raise ValueError(
                f"the weight of {label} is {weight:g}; negative weights could make a merged "
                f"precision negative: only isotropic posteriors allow them"
            )
    assert prior is not None  # its weight is the negative one
    for (label, task), weight in zip(tasks.items(), weights):
        for part in task.components if isinstance(task, Mixture) else [task]:
            if weight:
                _check_includes(label, part, prior)


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


def _check_includes(label: str, task: Gaussian, prior: Gaussian) -> None:
    """Weights that add up to more than 1 need precisions of at least the prior's everywhere.

    Full matrices, and priors that are not elementwise, are left to the solver's own check.
    """
    if isinstance(prior, Coupled):
        return
    for name, mean in task.mean.items():
        mine = task.elementwise(name)
        slack = 1 - 2 * torch.finfo(mean.dtype).eps
        if mine is not None and bool(
            (elementwise(task, name) < elementwise(prior, name) * slack).any()
        ):
            raise ValueError(
                f"{label}: the precision of {name!r} is smaller than the prior's somewhere; it "
                f"must include the prior once for weights that add up to more than 1"
            )


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
