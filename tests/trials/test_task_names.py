"""Names of tasks: which attributes of trials they make, and which names are refused."""

from __future__ import annotations

import re
from pathlib import Path

import optuna
import pytest
from helpers import toy_definition, toy_settings, toy_task

import optuna_merge as om
from optuna_merge.trials import (
    ATTRIBUTES,
    BASELINE,
    UNIFORM,
    check_task_names,
    names_of_tasks,
    names_of_trials,
    of_task,
    uniform_weights,
    weight_params,
)

TASKS = ("math", "math_hard", "se", "seconds_se")
"""Names that are prefixes and suffixes of others, and yet make attributes of their own."""


def studied(folder: Path) -> optuna.Study:
    """A study of these tasks that has come upon baselines, copies, retries and failures."""
    tasks = [toy_task(name, seed) for seed, name in enumerate(TASKS, 1)]
    definition = toy_definition(tasks, finetuning=toy_settings(steps=4), constraints=0.5)
    fitted = om.fit(definition, folder, progress=False)
    study = om.open_study(
        "names",
        optuna.storages.InMemoryStorage(),
        "maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=om.PromotionPruner(fraction=0.25, warmup=2, seed=0),
    )
    om.prepare_study(study, fitted)
    objective = om.Objective(fitted, progress=False)
    for weights in ({"w_math": 2.0}, {"w_math": 0.5, "w_math_hard": 0.5, "w_se": 0.5}):
        study.enqueue_trial(weights)
    uniform = weight_params(uniform_weights(TASKS))  # as a worker that prepares it at once does
    study.enqueue_trial(uniform, user_attrs={BASELINE: UNIFORM})
    interrupted: list[int] = []

    def once(trial: optuna.Trial) -> float | tuple[float, ...]:
        if not interrupted and trial.number > 8:
            interrupted.append(trial.number)
            raise KeyboardInterrupt
        return objective(trial)

    with pytest.raises(KeyboardInterrupt):
        om.run_trials(study, once, workdir=folder, n_trials=20)
    assert om.run_trials(study, once, workdir=folder, n_trials=20) >= 20
    return study


@pytest.mark.filterwarnings("ignore:Fixed parameter")
def test_the_schema_has_every_attribute_that_trials_get(tmp_path: Path) -> None:
    check_task_names(TASKS)
    of_tasks = [of_task(name, task) for name in names_of_tasks() for task in TASKS]
    assert len(of_tasks) == len(set(of_tasks))
    assert not names_of_trials() & set(of_tasks)
    limits = [f"constraint_{task}_of_alone_0.5" for task in TASKS]

    study = studied(tmp_path)
    seen = {key for trial in study.trials for key in trial.user_attrs}
    assert seen <= {*names_of_trials(), *of_tasks, *limits}
    assert {*of_tasks, *limits} <= seen
    assert names_of_trials() <= seen
    of_study = {attribute.name for attribute in ATTRIBUTES if attribute.of == "study"}
    assert study.user_attrs.keys() <= of_study


@pytest.mark.parametrize(
    "name",
    [
        "uniform",
        "uniform, second seed",
        "best",
        "score",
        "Uniform",
        "seconds",
        "taken_from",
        "reused",
        "Reused",
    ],
)
def test_names_that_stand_for_something_else_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"task name '{name}' (stands for|makes '.*_{name}')"):
        check_task_names(["red", name])


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (
            ["red_se", "red"],
            "tasks 'red_se' and 'red' would write one attribute of trials, 'preview_red_se'",
        ),
        (
            ["Red", "red"],
            "tasks 'Red' and 'red' would write one attribute of trials, 'weight_red'",
        ),
    ],
)
def test_two_tasks_may_not_make_one_attribute(tasks: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check_task_names(tasks)
    check_task_names(tasks[:1])
    check_task_names(tasks[1:])
