from __future__ import annotations

import copy
import dataclasses
import math
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
    squared_error,
)
from optuna_merge.tasks._data import batches_in_order


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


def test_names_must_not_be_long() -> None:
    assert toy_task("n" * 100).name == "n" * 100
    with pytest.raises(ValueError, match="task name has 101 letters, expected at most 100"):
        toy_task("n" * 101)
    with pytest.raises(ValueError, match="task 'red': head name has 300 letters"):
        toy_task("red", head="h" * 300)


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


def numbers(**changed: tuple[Any, float]) -> dict[str, torch.Tensor]:
    """Ten examples of numbers, some of them changed: by column, the place and the value."""
    columns = {
        "x": torch.randn(10, 2, 3, generator=torch.Generator().manual_seed(0)),
        "age": torch.linspace(0, 1, 10, dtype=torch.float64),
        "ids": torch.arange(20).view(10, 2),
        "labels": torch.linspace(-1, 1, 10)[:, None],
    }
    for name, (place, value) in changed.items():
        columns[name][place] = value
    return columns


def number_task(**data: Any) -> Task:
    fields: dict[str, Any] = {"train": numbers(), "validation": numbers()} | data
    regression: dict[str, Any] = {
        "loss": mean_squared_error,
        "metrics": (negative_squared_error,),
    }
    return Task("price", num_outputs=1, **fields, **regression)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize(
    "column, place", [("x", (7, 1, 2)), ("age", 7), ("labels", (7, 0))], ids=["x", "age", "labels"]
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused_by_task_split_column_and_example(
    split: str, column: str, place: Any, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optuna_merge.tasks._data._CHUNK", 12)  # several pieces of each column
    number_task(**{split: numbers()})
    told = re.escape(
        f"task 'price', {split} data: column {column!r} is {value} in example 7 (counted from 0); "
        f"labels and inputs must be finite numbers"
    )
    changed = numbers(**{column: (place, value)})
    with pytest.raises(ValueError, match=told):
        number_task(**{split: changed})
    # Data that are read piece by piece say so when they are read, as their description does.
    table = Dataset.from_dict({name: rows.tolist() for name, rows in changed.items()})
    task = number_task(**{split: table.with_format("torch")})
    assert task.data(split)[[6, 8]].keys() == changed.keys()
    with pytest.raises(ValueError, match=told):
        task.data(split)[[9, 7]]
    with pytest.raises(ValueError, match=told):
        task.describe()


def test_data_in_memory_are_looked_through_once() -> None:
    task = number_task()
    data = task.train
    assert isinstance(data, TensorData)
    data.columns["x"][3] = math.nan
    assert dataclasses.replace(task, metrics=(squared_error,)).train is data
    # What is computed from sound data, such as a frozen trunk's output, may be large.
    more = data.with_column("more", torch.full((10,), math.nan))
    assert list(more.columns) == [*data.columns, "more"]
    assert dataclasses.replace(task, train=more).train is more


def test_data_of_ones_own_keep_what_else_they_have() -> None:
    class Own:
        lengths = torch.arange(10)

        def __len__(self) -> int:
            return 10

        def __getitem__(self, indices: list[int]) -> dict[str, torch.Tensor]:
            return {name: rows[indices] for name, rows in numbers().items()}

        def content_hash(self) -> str:
            return "mine"

    task = number_task(train=Own())
    assert task.describe()["data"]["train"] == "mine"
    again = dataclasses.replace(copy.deepcopy(task), name="other")
    assert batches_in_order(again.data("train"), 4)[0] == [9, 8, 7, 6]
    assert len(again.data("train")) == 10


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
