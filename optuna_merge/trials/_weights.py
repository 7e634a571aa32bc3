"""Task weights: points on the simplex over tasks, and the Optuna parameters that stand for them.

The one convention of the package: task `t` is the parameter `w_<t>` in [0, 1], and the task
weights of a trial are its parameters divided by their sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from optuna.distributions import FloatDistribution
from optuna.trial import BaseTrial, FrozenTrial

MIN_WEIGHT = 1e-3
"""After normalising, a smaller weight counts as zero."""

_MAX_TASKS = 500
# Multiples of 2^-52 in [0, 1] add up without rounding, in any order and by any summation.
_GRID = 2.0**52


def check_tasks(tasks: Sequence[str]) -> tuple[str, ...]:
    """Task names as a tuple, in the order given.

    Raises:
        ValueError: No name, an empty or repeated name, a string in place of a sequence, or more
            than 500 names.
    """
    if isinstance(tasks, str):
        raise ValueError(f"tasks must be a sequence of names, got the string {tasks!r}.")
    names = tuple(tasks)
    if not 1 <= len(names) <= _MAX_TASKS:
        raise ValueError(f"Expected 1 to {_MAX_TASKS} task names, got {len(names)}.")
    for name in names:
        if not isinstance(name, str) or not name:
            raise ValueError(f"A task name must be a non-empty string, got {name!r}.")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"Task names must be unique, got more than once: {', '.join(repeated)}.")
    return names


def param_name(task: str) -> str:
    """The name of the Optuna parameter that holds a task's weight."""
    return f"w_{task}"


def weight_tasks(trials: Iterable[FrozenTrial]) -> tuple[str, ...]:
    """Names of the tasks whose weights the trials suggest: those of the first that has any.

    A parameter `w_<task>` is a task's weight if it is a float between 0 and 1.
    """
    prefix, weight = param_name(""), FloatDistribution(0.0, 1.0)
    for trial in trials:
        found = [name for name in trial.params if trial.distributions[name] == weight]
        names = tuple(
            n.removeprefix(prefix) for n in found if n.startswith(prefix) and n != prefix
        )
        if names:
            return names
    return ()


def refused_params(trial: FrozenTrial, tasks: Sequence[str]) -> str | None:
    """Why the parameters that a trial was given are no task weights; None: they are.

    Given by `enqueue_trial`, or with a trial that was added; those that are left out are sampled.
    Optuna lets in any value with a warning, but takes a trial that has it no second time: neither
    a copy nor another try could be queued.
    """
    enqueued: dict[str, Any] = trial.system_attrs.get("fixed_params", {})
    names = [param_name(task) for task in tasks]
    for name in enqueued:
        if name not in names and (name in tasks or name.startswith(param_name(""))):
            return (
                f"its parameter {name!r} is no task's weight; the weights are "
                f"{', '.join(names)}. Enqueue weights by task through "
                f"optuna_merge.trials.weight_params"
            )
    for name, value in (enqueued | trial.params).items():
        if name not in names:
            continue
        if not isinstance(value, Real) or not 0.0 <= float(value) <= 1.0:
            return (
                f"its parameter {name!r} is {value!r}, expected a number between 0 and 1. Enqueue "
                f"weights by task through optuna_merge.trials.weight_params, which divides them "
                f"by their sum"
            )
        kind = trial.distributions.get(name)
        if kind is not None and not isinstance(kind, FloatDistribution):
            return f"its parameter {name!r} is of {kind}, expected one of a FloatDistribution"
    return None


def trial_weights(params: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, float] | None:
    """The task weights that parameters stand for; None where some are missing or are no weights.

    For readers: they meet trials of any objective, and what others have enqueued.
    """
    values = [params.get(param_name(task)) for task in tasks]
    if not all(isinstance(value, Real) for value in values):
        return None
    try:
        return dict(zip(tasks, canonical_weights([float(v) for v in values if v is not None])))
    except ValueError:  # negative, NaN, or infinite
        return None


def canonical_weights(
    values: Sequence[float], tasks: Sequence[str] | None = None
) -> tuple[float, ...]:
    """Normalise non-negative numbers to task weights.

    The numbers are divided by their sum; then weights below 1e-3 become 0 and the others are
    divided by their sum again. All zero means uniform weights. The result adds up to exactly 1.0
    in any order, and is left as it is when canonicalised again.

    Args:
        values: One non-negative finite number per task (at most 500).
        tasks: The task names, only for checking the length and for naming the culprit in errors.

    Raises:
        ValueError: A negative, NaN or infinite value, no value, or another length than `tasks`.

    Examples:
        >>> canonical_weights([1, 3])
        (0.25, 0.75)
        >>> canonical_weights([0, 0])
        (0.5, 0.5)
        >>> canonical_weights([1, -1], ["news", "reviews"])
        Traceback (most recent call last):
        ValueError: The weight of task 'reviews' is -1.0; weights must be finite and not negative.
    """
    numbers = [float(v) for v in values]
    if tasks is not None and len(numbers) != len(tasks):
        raise ValueError(
            f"Expected {len(tasks)} weights, one per task ({', '.join(tasks)}), "
            f"got {len(numbers)}."
        )
    if not 1 <= len(numbers) <= _MAX_TASKS:
        raise ValueError(f"Expected 1 to {_MAX_TASKS} weights, got {len(numbers)}.")
    for i, number in enumerate(numbers):
        if not (math.isfinite(number) and number >= 0.0):
            label = f"task {tasks[i]!r}" if tasks is not None else f"position {i}"
            raise ValueError(
                f"The weight of {label} is {number}; weights must be finite and not negative."
            )
    largest = max(numbers)
    if largest == 0.0:
        numbers = [1.0] * len(numbers)
    elif largest > 1e300 or largest < 1e-290:  # their sum or their quotients could be inexact
        numbers = [v / largest for v in numbers]
    weights = _normalise(numbers)
    if any(0.0 < w < MIN_WEIGHT for w in weights):
        weights = _normalise([w if w >= MIN_WEIGHT else 0.0 for w in weights])
    return tuple(weights)


def uniform_weights(tasks: Sequence[str]) -> dict[str, float]:
    """Equal task weights, as a trial has them.

    Raises:
        ValueError: Bad task names; see `check_tasks`.
    """
    names = check_tasks(tasks)
    return dict(zip(names, canonical_weights([1.0] * len(names))))


def alone_weights(tasks: Sequence[str]) -> dict[str, dict[str, float]]:
    """By task, the task weights with all weight on this task."""
    return {task: {other: float(other == task) for other in tasks} for task in tasks}


def _normalise(numbers: Sequence[float]) -> list[float]:
    """Divide by the sum and round up to the grid; the largest weight takes up the rounding."""
    total = math.fsum(numbers)
    weights = [math.ceil(v / total * _GRID) / _GRID for v in numbers]
    top = max(range(len(weights)), key=weights.__getitem__)
    weights[top] = 1.0 - (sum(weights[:top]) + sum(weights[top + 1 :]))
    return weights


def suggest_weights(trial: BaseTrial, tasks: Sequence[str]) -> dict[str, float]:
    """Suggest the parameters `w_<task>` in task order and return the canonical task weights.

    Raises:
        ValueError: Bad task names; see `check_tasks`.

    Examples:
        >>> import optuna
        >>> trial = optuna.trial.FixedTrial({"w_news": 0.2, "w_reviews": 0.2})
        >>> suggest_weights(trial, ["news", "reviews"])
        {'news': 0.5, 'reviews': 0.5}
    """
    names = check_tasks(tasks)
    values = [trial.suggest_float(param_name(name), 0.0, 1.0) for name in names]
    return dict(zip(names, canonical_weights(values, names)))


def weight_params(weights: Mapping[str, float]) -> dict[str, float]:
    """Parameters for `study.enqueue_trial` that stand for the task weights given.

    Raises:
        ValueError: Bad task names or weights; see `check_tasks` and `canonical_weights`.

    Examples:
        >>> weight_params({"news": 1, "reviews": 3})
        {'w_news': 0.25, 'w_reviews': 0.75}
    """
    names = check_tasks(tuple(weights))
    values = canonical_weights(tuple(weights.values()), names)
    return {param_name(name): value for name, value in zip(names, values)}
