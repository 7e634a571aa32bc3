from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers import toy_columns, toy_task
from torch import nn

from optuna_merge.tasks import (
    Loss,
    Task,
    TensorData,
    check_tasks,
    cross_entropy,
    mean_squared_error,
    negative_squared_error,
)


def test_defaults() -> None:
    task = toy_task("red")
    assert task.head == "red"
    assert task.loss is cross_entropy
    assert task.metric.name == "accuracy"
    assert isinstance(task.data("train"), TensorData)
    with pytest.raises(ValueError, match="task 'red' has no 'test' data"):
        task.data("test")
    with pytest.raises(ValueError, match="task 'red' has no 'name' data"):
        task.data("name")


def test_a_plain_function_and_a_module_become_losses_with_stable_names() -> None:
    def my_loss(outputs: Any, labels: Any) -> Any:
        return cross_entropy(outputs, labels)

    plain = toy_task("red", loss=my_loss)
    assert isinstance(plain.loss, Loss)
    assert plain.loss.name.endswith("my_loss")
    # A name that stands in a fingerprint must not hold an address.
    module = toy_task("red", loss=nn.CrossEntropyLoss(reduction="none"))
    assert module.describe()["loss"] == "CrossEntropyLoss"


def with_labels(*labels: float) -> dict[str, torch.Tensor]:
    return {"x": torch.zeros(len(labels), 6), "labels": torch.tensor(labels)}


BAD_TASKS: list[tuple[dict[str, Any], str]] = [
    (
        {"train": {"x": torch.zeros(0, 6), "labels": torch.zeros(0).long()}},
        "task 'red', train data: no examples; give at least one",
    ),
    (
        {"validation": {"x": torch.zeros(0, 6), "labels": torch.zeros(0).long()}},
        "task 'red', validation data: no examples",
    ),
    (
        {"train": with_labels(1, 1, 1)},
        "task 'red', train data: all 3 examples have the label 1; a classifier needs at least two",
    ),
    (
        {"train": with_labels(0, 1, 2)},
        "task 'red', train data: labels lie in 0..2, but the head has 2 outputs, for labels 0..1",
    ),
    (
        {"validation": with_labels(-1, 1)},
        "task 'red', validation data: labels lie in -1..1, but the head has 2 outputs",
    ),
    ({"test": with_labels(0, 7)}, "task 'red', test data: labels lie in 0..7"),
    ({"train": with_labels(0.0, 1.0)}, "classes must be integers, got torch.float32"),
    (
        {"train": {"x": torch.zeros(3, 6), "y": torch.zeros(3)}},
        "task 'red', train data: no column 'labels' among ['x', 'y']; rename the labels' column",
    ),
    (
        {"train": {"x": torch.zeros(3, 6), "labels": torch.zeros(2)}},
        "columns must be tensors of one common length, one row an example; got {'x': 3, 'labels'",
    ),
    ({"num_outputs": 0}, "task 'red': num_outputs must be >= 1: 0"),
    ({"metrics": ()}, "task 'red' needs at least one metric, got none"),
    ({"head": "a.b"}, "task 'red': head name must be letters, digits, '_' and '-'"),
]


@pytest.mark.parametrize("changes, message", BAD_TASKS)
def test_bad_tasks_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        toy_task("red", **changes)


@pytest.mark.parametrize("name", ["", "a b", "a.b", "a/b", "é", 3, None])
def test_names_must_be_usable_in_files_and_parameters(name: Any) -> None:
    with pytest.raises(ValueError, match=f"task name must be letters.*got {name!r}"):
        toy_task(name)


@pytest.mark.parametrize("name", ["train", "keys", "type", "training", "_parameters"])
def test_words_that_torch_modules_need_are_no_names(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name!r} is a word that torch modules need"):
        toy_task(name)


def test_a_regression_task_needs_no_classes() -> None:
    data = {"x": torch.zeros(2, 6), "labels": torch.full((2, 1), 0.5)}
    task = Task("price", data, data, 1, loss=mean_squared_error, metrics=(negative_squared_error,))
    assert task.metric is negative_squared_error


def test_labels_of_data_that_are_not_in_memory_are_checked() -> None:
    table = Dataset.from_dict({"x": [[0.0]] * 5000, "labels": [0] * 4999 + [2]})
    with pytest.raises(ValueError, match=re.escape("labels lie in 0..2")):
        Task("red", table.with_format("torch"), toy_columns(), 2)


BAD_SETS: list[tuple[Callable[[], list[Task]], str]] = [
    (list, "a study needs at least one task, got none"),
    (lambda: [toy_task("red"), toy_task("red", 5)], "two tasks have the name 'red'"),
    (
        lambda: [toy_task("red", head="h"), toy_task("blue", head="h", classes=3)],
        "tasks 'red' and 'blue' share the head 'h' but want 2 and 3 outputs",
    ),
]


@pytest.mark.parametrize("make, message", BAD_SETS)
def test_tasks_that_cannot_stand_in_one_study(
    make: Callable[[], list[Task]], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check_tasks(make())


def test_a_description_tells_what_must_be_equal() -> None:
    described = toy_task("red", 1, test=toy_columns(seed=3)).describe()
    assert described == toy_task("red", 1, test=toy_columns(seed=3)).describe()
    assert sorted(described["data"]) == ["test", "train", "validation"]
    for change, part in [
        ({"head": "other"}, "head"),
        ({"num_outputs": 3}, "num_outputs"),
        ({"loss": mean_squared_error}, "loss"),
        ({"metrics": (negative_squared_error,)}, "metrics"),
        ({"validation": toy_columns(seed=4)}, "data"),
    ]:
        other = toy_task("red", 1, **({"test": toy_columns(seed=3)} | change)).describe()
        assert [key for key in described if described[key] != other[key]] == [part]
