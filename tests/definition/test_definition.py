from __future__ import annotations

import functools
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    FEATURES,
    toy_body,
    toy_columns,
    toy_definition,
    toy_model,
    toy_settings,
    toy_task,
    toy_tasks,
)
from torch import nn

from optuna_merge._base.files import canonical_json, sha256_text
from optuna_merge.definition import PosteriorSettings, StudyDefinition
from optuna_merge.goals import Constraint, Score
from optuna_merge.models import Matching, from_module
from optuna_merge.tasks import Metric, accuracy, negative_squared_error

error = Metric("error", lambda outputs, labels: accuracy(outputs, labels), greater_is_better=False)


def test_the_direction_follows_the_metrics_and_the_score() -> None:
    assert toy_definition().direction == "maximize"
    tasks = [toy_task("red", metrics=(error,)), toy_task("blue", metrics=(error, accuracy))]
    assert toy_definition(tasks, score="worst").direction == "minimize"
    own = Score("own", lambda metrics, alone: 0.0, maximize=False)
    assert toy_definition(score=own).direction == "minimize"
    mixed = [toy_task("red", metrics=(error,)), toy_task("blue")]
    assert toy_definition(mixed, score=own).direction == "minimize"


def test_the_score_is_of_the_metrics_and_the_tasks_alone() -> None:
    definition = toy_definition(score="relative")
    metrics, alone = {"red": 0.4, "blue": 0.9}, {"red": 0.8, "blue": 0.9}
    assert definition.goal(alone).score_of(metrics) == pytest.approx(0.75)
    assert definition.names == ("red", "blue")


def parts(**changes: Any) -> dict[str, Any]:
    return toy_definition(**changes).describe()


def test_a_description_is_json_and_the_same_for_the_same_parts() -> None:
    described = parts()
    assert json.loads(canonical_json(described)) == described
    assert parts() == described


def with_task(index: int, **changes: Any) -> StudyDefinition:
    tasks = list(toy_tasks())
    tasks[index] = toy_task(tasks[index].name, index + 1, classes=index + 2, **changes)
    return toy_definition(tasks)


def altered_body() -> Any:
    body = toy_body()
    with torch.no_grad():
        body[0].weight[0, 0] += 1e-6
    return from_module(body, toy_tasks(), features=FEATURES, inputs=["x"])


CHANGES: list[tuple[Callable[[], StudyDefinition], str]] = [
    (lambda: with_task(1, train=toy_columns(24, 3, seed=5)), "tasks"),
    (lambda: with_task(1, validation=toy_columns(24, 3, seed=5)), "tasks"),
    (lambda: with_task(1, test=toy_columns(24, 3, seed=5)), "tasks"),
    (lambda: with_task(0, metrics=(negative_squared_error,)), "tasks"),
    (lambda: toy_definition(model=altered_body()), "body"),
    (lambda: toy_definition(model=toy_model(toy_tasks(), seed=1)), "body"),
    (lambda: toy_definition(model=toy_model(toy_tasks(), trainable=Matching("^3"))), "body"),
    (lambda: toy_definition(finetuning=toy_settings(steps=8)), "finetuning"),
    (lambda: toy_definition(finetuning=toy_settings(seed=1)), "finetuning"),
    (lambda: toy_definition(finetuning=toy_settings(optimizer="ivon")), "finetuning"),
    (lambda: toy_definition(posterior=PosteriorSettings(damping=0.1)), "posterior"),
    (lambda: toy_definition(posterior=PosteriorSettings(family="rows_columns")), "posterior"),
    (lambda: toy_definition(score="worst"), "score"),
]


def test_constraints_are_described_where_there_are_any() -> None:
    assert "constraints" not in parts()
    assert parts(constraints=0.9) == {
        **parts(),
        "constraints": ["red_of_alone_0.9", "blue_of_alone_0.9"],
    }
    given = parts(constraints=[Constraint("blue", at_most=0.5)])
    assert given["constraints"] == ["blue_at_most_0.5"]


def test_a_pareto_study_has_a_direction_per_task() -> None:
    tasks = [toy_task("red", metrics=(error,)), toy_task("blue")]
    definition = toy_definition(tasks, score="pareto")
    assert definition.directions == ("minimize", "maximize")
    assert definition.goal({}).values_of({"red": 0.1, "blue": 0.7}) == (0.1, 0.7)
    described = definition.describe()
    assert (described["score"], described["direction"]) == ("pareto", "minimize, maximize")
    assert toy_definition().directions == ("maximize",)


@pytest.mark.parametrize("make, part", CHANGES)
def test_whatever_must_be_equal_on_all_workers_changes_its_part(
    make: Callable[[], StudyDefinition], part: str
) -> None:
    before, after = parts(), make().describe()
    assert [key for key in before if before[key] != after[key]] == [part]


def test_the_description_is_the_same_in_every_process() -> None:
    """Also with a score that has no name, whose repr holds an address."""
    program = (
        "from helpers import toy_definition\n"
        "from functools import partial\n"
        "from optuna_merge._base.files import canonical_json, sha256_text\n"
        "described = toy_definition(score=partial(lambda metrics: 0.0)).describe()\n"
        "print(sha256_text(canonical_json(described)))\n"
    )
    folder = Path(__file__).resolve().parents[1]
    answer = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": f"{folder.parent}:{folder}", "PYTHONHASHSEED": "123"},
    )
    described = toy_definition(score=functools.partial(lambda metrics: 0.0)).describe()
    assert answer.stdout.split()[-1] == sha256_text(canonical_json(described))


BAD: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: toy_definition([], model=toy_model(toy_tasks())),
        "a study needs at least one task, got none",
    ),
    (
        lambda: toy_definition(
            [toy_task("red"), toy_task("red", 1)], model=toy_model(toy_tasks())
        ),
        "two tasks have the name 'red'; names must differ: ['red', 'red']",
    ),
    (
        lambda: toy_definition([toy_task("red"), toy_task("best")]),
        "task name 'best' stands for the best finetune in reports and tables; take another",
    ),
    (
        lambda: toy_definition([toy_task("red_se"), toy_task("red")]),
        "tasks 'red_se' and 'red' would write one attribute of trials, 'preview_red_se'",
    ),
    (
        lambda: toy_definition(model=toy_model(toy_tasks()[::-1])),
        "the model was made for the tasks ['blue', 'red'], but the definition has ['red', 'blue']",
    ),
    (
        lambda: toy_definition([toy_task("red", metrics=(error,)), toy_task("blue")]),
        "some tasks' metrics are to be maximised and others minimised ({'red': False, 'blue': Tr",
    ),
    (lambda: toy_definition(score="best"), "score must be one of"),
    (
        lambda: toy_definition(toy_tasks()[:1], score="pareto"),
        "score 'pareto' needs at least two tasks, got one",
    ),
    (
        lambda: toy_definition(constraints=[Constraint("green", at_least=0.5)]),
        "constraint 'green_at_least_0.5': no task 'green' among ['red', 'blue']",
    ),
    (lambda: toy_definition(score="target:green"), "no task 'green' among ['red', 'blue']"),
    (
        lambda: PosteriorSettings(family="laplace"),
        "family must be one of isotropic, per_tensor, diagonal, rows_columns, low_rank, kronecker",
    ),
    (
        lambda: PosteriorSettings(estimator="adam"),  # type: ignore[arg-type]
        "estimator must be one of squared_gradients, ivon, got 'adam'",
    ),
    (
        lambda: PosteriorSettings(family="low_rank", estimator="ivon"),
        "for the families per_tensor, diagonal, rows_columns, got family='low_rank'; use estimat",
    ),
    (
        lambda: toy_definition(posterior=PosteriorSettings(estimator="ivon")),
        "they are with optimizer='adamw'; use FinetuneSettings(optimizer='ivon') or estimator='sq",
    ),
    (
        lambda: toy_definition(
            model=from_module(nn.Linear(6, 2000), toy_tasks(), features=2000, inputs=["x"]),
            posterior=PosteriorSettings(family="full"),
        ),
        "a matrix of 14000 x 14000 numbers per task, 1.5 GiB each in fp64, for the 14000 merged "
        "parameters; at most 8192 are allowed: merge fewer",
    ),
    (lambda: PosteriorSettings(examples=0), "examples must be at least 1, got 0"),
    (lambda: PosteriorSettings(damping_examples=0), "damping_examples must be at least 1, got 0"),
    (lambda: PosteriorSettings(chunk_size=0), "chunk_size must be at least 1, got 0"),
    (lambda: PosteriorSettings(damping=0.0), "damping must be positive, got 0.0"),
    (lambda: PosteriorSettings(damping=math.nan), "damping must be positive, got nan"),
]


@pytest.mark.parametrize("make, message", BAD)
def test_bad_definitions_are_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_mixtures_are_merged_in_independent_parts_only() -> None:
    for family in ("low_rank", "full"):
        with pytest.raises(ValueError, match=f"which those of family='{family}' are not"):
            PosteriorSettings(family=family, components=2, responsibilities="layer")
    with pytest.raises(
        ValueError, match="use one of isotropic, per_tensor, diagonal, rows_columns, or"
    ):
        PosteriorSettings(family="kronecker", components=2, responsibilities="coordinate")
    PosteriorSettings(family="full", components=1, responsibilities="layer")
    PosteriorSettings(family="kronecker", components=2, responsibilities="layer")
