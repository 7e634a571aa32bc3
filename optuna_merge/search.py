"""Opening a search: the study, its sampler and pruner, its baselines, checked on the way."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_merge._base.lazy import need
from optuna_merge.exceptions import DefinitionMismatchError
from optuna_merge.fitting import Workbench
from optuna_merge.goals import Goal
from optuna_merge.pruners import PromotionPruner
from optuna_merge.samplers import PreviewSampler
from optuna_merge.storages import create_storage
from optuna_merge.trials import (
    BASELINE,
    COSTS,
    DEFINITION,
    FAILURE,
    FINGERPRINT,
    GIVEN_UP,
    GREATER_IS_BETTER,
    MAX_RETRY,
    REFERENCE_POINT,
    REPEAT,
    TASKS,
    TRIES,
    TRUTH,
    UNIFORM,
    alone_weights,
    baseline_name,
    baseline_of,
    of_task,
    stored_definition,
    uniform_weights,
    weight_params,
)

_logger = logging.getLogger(__name__)

SECOND_SEEDS = 2
"""Finetunes that `open_search` keeps for second seeds of the best weights."""


def open_search(
    workbench: Workbench,
    name: str,
    storage: str | optuna.storages.BaseStorage | None = None,
    *,
    fraction: float | None = None,
    max_promotions: int | None = None,
    warmup: int | None = None,
    seed: int | None = None,
    budget: float | None = None,
    second_seed: bool = True,
    stop_when_flat: bool = True,
    until: float | None = None,
) -> optuna.Study:
    """Open a study, or make it, with a sampler, a pruner and baselines that agree.

        study = open_search(workbench, "news", "sqlite:///news.db", seed=0)
        study.optimize(Objective(workbench), n_trials=40)

    This calls `open_study` with a `PreviewSampler` and a `PromotionPruner` for the workbench's
    goal, and then `prepare_study`. You can call each of them alone, and set any other sampler or
    pruner on the study.

    With `budget` or another cap, the last two finetunes repeat the best weights with a second
    seed.

    Args:
        workbench: What previews and finetunes; from `fit`, or another `Workbench`.
        name: The study's name. An existing study of this name continues.
        storage: Where the study is: a URL as for `create_storage`, a storage, or None for memory.
        fraction: As in `PromotionPruner`, like the next two arguments, `budget` and `until`.
        max_promotions: Cap on the promotions of the whole study; None for none.
        warmup: Number of previews before anything is promoted; None: the pruner's default.
        seed: Seed of sampler and pruner.
        budget: What the whole study may cost, in units of a finetune at uniform weights; None for
            no cap.
        second_seed: Whether to finetune uniform weights a second time, with another seed. The
            difference tells the noise of one finetune, at the cost of one finetune.
        stop_when_flat: Whether `study.optimize` ends when the score is flat.
        until: Stop once another finetune is expected to be better than the best by less than this
            share of the noise of one finetune; None for never.

    Raises:
        DefinitionMismatchError: the study has other directions or another definition; the message
            names the parts that differ.
        ValueError: an argument is out of its range.
        ImportError: botorch is missing, which only several objectives need.
    """
    goal = workbench.goal
    check_until(until, is_pareto=goal.is_pareto)
    check_seed(seed)
    if goal.is_pareto:
        need("botorch", "pareto", "a search for a front")
    score = None if goal.is_pareto else goal.scores
    pruner = PromotionPruner(
        fraction=fraction,
        max_promotions=max_promotions,
        warmup=warmup,
        score=score,
        constraints=goal.limits,
        budget=budget,
        second_seeds=0 if goal.is_pareto else SECOND_SEEDS,
        stop_when_flat=stop_when_flat,
        until=until,
        seed=seed,
    )
    sampler = PreviewSampler(workbench.names, seed=seed, score=score, constraints=goal.limits)
    if storage is None or isinstance(storage, str):
        storage = create_storage(storage)
    study = open_study(name, storage, goal.directions, sampler=sampler, pruner=pruner)
    prepare_study(study, workbench, second_seed=second_seed)
    return study


def check_until(until: float | None, *, is_pareto: bool) -> None:
    """Raise `ValueError` if `until` is given for a study without a single score."""
    if is_pareto and until is not None:
        raise ValueError(
            f"until is {until}, but the study has an objective a task: there is no single score "
            f"that another finetune could improve. Leave it out, or give a score"
        )


def check_seed(seed: int | None) -> None:
    """Raise `ValueError` unless random numbers can be drawn from this seed."""
    if seed is not None and not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}, expected 0 to {2**32 - 1}, or None for a new one")


def open_study(
    study_name: str,
    storage: optuna.storages.BaseStorage,
    directions: str | Sequence[str],
    *,
    sampler: optuna.samplers.BaseSampler | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
) -> optuna.Study:
    """Open the study, or make it if it is missing.

    Args:
        study_name: The study's name.
        storage: The storage that holds the study.
        directions: "maximize" or "minimize", or one of them for each objective. A definition has
            its own in `definition.directions`.
        sampler: The study's sampler.
        pruner: The study's pruner.

    Raises:
        DefinitionMismatchError: the study exists with other directions.
    """
    study = optuna.create_study(
        study_name=study_name,
        storage=storage,
        sampler=sampler,
        pruner=pruner,
        directions=[StudyDirection[d.upper()] for d in _as_tuple(directions)],
        load_if_exists=True,
    )
    check_directions(study, directions)
    return study


def load_study(study_name: str, storage: optuna.storages.BaseStorage) -> optuna.Study:
    """Open a study that exists, to read it.

    Raises:
        ValueError: it doesn't; the message names those that do.
    """
    try:
        return optuna.load_study(study_name=study_name, storage=storage)
    except KeyError:
        known = ", ".join(optuna.get_all_study_names(storage)) or "none"
        raise ValueError(f"no study {study_name!r} in this storage; there are: {known}") from None


def check_directions(study: optuna.Study, directions: str | Sequence[str]) -> None:
    """Raise `DefinitionMismatchError` unless the study has exactly these directions."""
    wanted = _as_tuple(directions)
    found = ", ".join(d.name.lower() for d in study.directions)
    if found == ", ".join(wanted).lower():
        return
    if len(wanted) == 1:
        asked, flags = f"score is to be {wanted[0]}d", f"--direction {wanted[0]}"
    else:
        asked, flags = f"objectives are to {', '.join(wanted)}", f"--directions {' '.join(wanted)}"
    raise DefinitionMismatchError(
        f"study {study.study_name!r} has direction {found}, but the definition's {asked}; make a "
        f"study of another name: optuna create-study --study-name ... {flags}"
    )


def _as_tuple(directions: str | Sequence[str]) -> tuple[str, ...]:
    return (directions,) if isinstance(directions, str) else tuple(directions)


def prepare_study(study: optuna.Study, workbench: Workbench, *, second_seed: bool = True) -> None:
    """Write the definition into a new study, or compare it with the study's; enqueue the baselines
    once.

    Baselines are uniform weights, each task alone, and uniform weights a second time.

    Args:
        study: The study.
        workbench: What previews and finetunes.
        second_seed: Whether uniform weights are finetuned a second time, with another seed.

    Raises:
        DefinitionMismatchError: the study has other directions or another definition; the message
            names the parts that differ.
    """
    goal = workbench.goal
    check_directions(study, goal.directions)
    if FINGERPRINT not in study.user_attrs:
        if any(t.state != TrialState.WAITING for t in study.get_trials(deepcopy=False)):
            raise DefinitionMismatchError(
                f"study {study.study_name!r} has trials but no optuna_merge definition; make a "
                f"study of another name"
            )
        # Bulk first: whoever sees the fingerprint finds the definition as well.
        study.set_user_attr(DEFINITION, json.dumps(workbench.parts))
        study.set_user_attr(TASKS, list(workbench.names))
        study.set_user_attr(GREATER_IS_BETTER, dict(goal.greater_is_better))
        names = [f"score ({goal.name})"]
        if goal.is_pareto:
            names = list(workbench.names)
            study.set_user_attr(REFERENCE_POINT, dict(workbench.reference_point))
        study.set_user_attr(FINGERPRINT, workbench.fingerprint)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(names)
    check_prepared(study, workbench)
    _check_score(study, goal)
    if COSTS not in study.user_attrs:
        study.set_user_attr(COSTS, dict(workbench.costs))
    _enqueue_baselines(study, workbench.names, second_seed=second_seed)


def _check_score(study: optuna.Study, goal: Goal) -> None:
    """Raise unless the truths so far have the goal's score: a function is known by its name only.

    Raises:
        DefinitionMismatchError: one has another score.
    """
    if goal.is_pareto:
        return
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        known = ((task, trial.user_attrs.get(of_task(TRUTH, task))) for task in goal.tasks)
        metrics = {task: float(value) for task, value in known if value is not None}
        if trial.value is None or len(metrics) < len(goal.tasks):
            continue
        found = goal.score_of(metrics)
        if not math.isclose(found, trial.value, rel_tol=1e-4, abs_tol=1e-9):
            raise DefinitionMismatchError(
                f"study {study.study_name!r} has another score: its trial {trial.number} has the "
                f"value {trial.value:g}, and the score {goal.name!r} of the metrics there is "
                f"{found:g}; was the function changed? Change it back, or make a study of another "
                f"name, which finds all finetunes again"
            )


def check_prepared(study: optuna.Study, workbench: Workbench) -> None:
    """Raise `DefinitionMismatchError` unless the study was prepared for this workbench."""
    found = study.user_attrs.get(FINGERPRINT)
    if found is None:
        raise DefinitionMismatchError(
            f"study {study.study_name!r} has no optuna_merge definition yet; call "
            f"prepare_study(study, fitted) first"
        )
    if found != workbench.fingerprint:
        raise _mismatch(study, differing_parts(stored_definition(study), dict(workbench.parts)))


def check_definition(study: optuna.Study, parts: Mapping[str, Any]) -> None:
    """Raise `DefinitionMismatchError` unless `describe()` of a definition is as the study's."""
    stored = stored_definition(study)
    given = json.loads(json.dumps(parts))
    changed = differing_parts({part: stored[part] for part in given if part in stored}, given)
    if stored and changed:
        raise _mismatch(study, changed)


def _mismatch(study: optuna.Study, changed: Sequence[str]) -> DefinitionMismatchError:
    return DefinitionMismatchError(
        f"study {study.study_name!r} was made with another definition; what differs: "
        f"{', '.join(changed) or 'unknown'}. Take a study of another name, or the definition "
        f"and working folder that it was made with"
    )


def baseline_weights(tasks: Sequence[str]) -> dict[str, dict[str, float]]:
    """Task weights by the baseline's name: "uniform", then each task alone."""
    if len(tasks) == 1:
        return {UNIFORM: {tasks[0]: 1.0}}
    weightings = {UNIFORM: uniform_weights(tasks)}
    return weightings | alone_weights(tasks)


def duplicate_baseline(trials: Sequence[FrozenTrial], trial: FrozenTrial) -> int | None:
    """Number of an earlier trial that is not failed and has the same baseline, if any.

    A repeat, with another seed, is another baseline.
    """
    name = baseline_of(trial)
    if name is None:
        return None
    earlier = (t for t in trials if t.number < trial.number and t.state != TrialState.FAIL)
    return next((t.number for t in earlier if baseline_of(t) == name), None)


def differing_parts(stored: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """Readable names of the parts of two definitions that differ."""
    names: list[str] = []
    for part in sorted({*stored, *given}):
        old, new = stored.get(part), given.get(part)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            inner = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
            names += [f"{part}.{k} ({_short(old.get(k))} → {_short(new.get(k))})" for k in inner]
        elif part == "tasks" and old is not None and new is not None:
            names += _differing_tasks(old, new)
        else:
            names.append(f"{part} ({_short(old)} → {_short(new)})")
    if any(name.startswith("tasks (") for name in names):  # their heads are hashed with the body
        names = [name for name in names if not name.startswith("body.hash ")]
    return names


def _differing_tasks(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[str]:
    old_names, new_names = [t["name"] for t in old], [t["name"] for t in new]
    if old_names != new_names:
        return [f"tasks ({', '.join(old_names)} → {', '.join(new_names)})"]
    return [
        f"task {a['name']}: {key}" for a, b in zip(old, new) for key in a if a[key] != b.get(key)
    ]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"


def _enqueue_baselines(study: optuna.Study, tasks: Sequence[str], *, second_seed: bool) -> None:
    """Two workers may do this at once: the objective drops the later of two equal baselines.

    One that failed is enqueued again, and given up after as many tries as other weightings have.
    """
    trials = study.get_trials(deepcopy=False)
    there = {baseline_of(t) for t in trials if t.state != TrialState.FAIL}
    weightings = baseline_weights(tasks)
    again = [(UNIFORM, 1)] if second_seed and len(tasks) > 1 else []
    for baseline, repeat in [*((name, 0) for name in weightings), *again]:
        name = baseline_name(baseline, repeat)
        if name in there:
            continue
        failed = [t for t in trials if baseline_of(t) == name and TRIES in t.user_attrs]
        tries = max((int(t.user_attrs[TRIES]) for t in failed), default=0)
        if tries > MAX_RETRY or any(GIVEN_UP in t.user_attrs for t in failed):
            reason = failed[-1].user_attrs.get(FAILURE)
            _logger.warning("the baseline %r is given up after %d tries: %s", name, tries, reason)
            continue
        attrs: dict[str, Any] = {BASELINE: baseline} | ({TRIES: tries} if tries else {})
        attrs |= {REPEAT: repeat} if repeat else {}
        study.enqueue_trial(weight_params(weightings[baseline]), user_attrs=attrs)
