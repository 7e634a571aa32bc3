"""The `Task`, and the checks that tell a user early what is wrong with one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from optuna_merge.tasks._data import LABELS, Data, as_data, fingerprint
from optuna_merge.tasks._losses import Loss, cross_entropy
from optuna_merge.tasks._metrics._classification import accuracy
from optuna_merge.tasks._metrics._metric import Metric

SPLITS = ("train", "validation", "test")
MOST_LETTERS = 100
"""Of a name: it is a part of file names, which may have 255, and of keys in databases."""


@dataclass(frozen=True)
class Task:
    """A task that the model is finetuned for: its data, head, loss and metrics.

    Attributes:
        name: Letters, digits, `_` and `-`, at most 100; the Optuna parameter is `w_<name>`.
            A study refuses names with another meaning (`uniform`, `best`, `score`), and names from
            which an existing attribute of trials would be made, such as `preview_seconds`.
        train: Training data, for finetunes and curvature: a `Data` or a mapping of tensors.
        validation: Validation data, on which previews and truths are measured; the search uses no
            other data.
        num_outputs: Number of outputs of the head; for classification, the number of classes.
        test: Test data, which only the final table uses. Optional.
        head: Name of the head. Tasks that name the same head share it, and the shared head is
            merged with the body. Default: a head of the task's own, which is never merged.
        loss: Loss per example: a `Loss`, or a function `(outputs, labels) -> (batch,)`.
        metrics: Metrics; the first one is the task's metric in scores and tables.
        label_names: Names of the classes, for exported models; not part of the definition.

    Raises:
        ValueError: no examples, no `labels` column, a class outside the head, one class only, a
            name that can't be used, other label names than outputs, a label or input that is NaN
            or infinite (for data that are not in memory this is found when they are read).

    Examples:
        >>> columns = {"x": torch.randn(4, 8), "labels": torch.tensor([0, 1, 0, 1])}
        >>> task = Task("sign", train=columns, validation=columns, num_outputs=2)
        >>> task.metric.name, sorted(task.data("train")[[0, 3]])
        ('accuracy', ['labels', 'x'])
    """

    name: str
    train: Data | Mapping[str, Tensor]
    validation: Data | Mapping[str, Tensor]
    num_outputs: int
    test: Data | Mapping[str, Tensor] | None = None
    head: str | None = None
    loss: Loss | Callable[[Tensor, Tensor], Tensor] = cross_entropy
    metrics: tuple[Metric, ...] = (accuracy,)
    label_names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_name("task", self.name)
        if self.head is None:
            object.__setattr__(self, "head", self.name)
        check_name(f"task {self.name!r}: head", self.head)
        if not isinstance(self.loss, Loss):
            # Not its repr, which may hold an address: this name stands in the fingerprint.
            name = getattr(self.loss, "__qualname__", type(self.loss).__qualname__)
            object.__setattr__(self, "loss", Loss(name, self.loss))
        if not self.metrics:
            raise ValueError(f"task {self.name!r} needs at least one metric, got none")
        if self.num_outputs < 1:
            raise ValueError(f"task {self.name!r}: num_outputs must be >= 1: {self.num_outputs}")
        if self.label_names is not None and len(self.label_names) != self.num_outputs:
            raise ValueError(
                f"task {self.name!r}: {len(self.label_names)} label_names for {self.num_outputs} "
                f"outputs; give one a class, or none"
            )
        for split in SPLITS:
            data = getattr(self, split)
            if data is None and split == "test":
                continue
            self._check_metrics(split)
            object.__setattr__(self, split, as_data(data, self._where(split)))
            self._check_split(split)

    @property
    def metric(self) -> Metric:
        """The metric that scores and tables use."""
        return self.metrics[0]

    def data(self, split: str) -> Data:
        """The data of `split`: "train", "validation" or "test".

        Raises:
            ValueError: another word, or a test split that the task does not have.
        """
        data = getattr(self, split) if split in SPLITS else None
        if data is None:
            raise ValueError(f"task {self.name!r} has no {split!r} data")
        return data  # type: ignore[no-any-return]

    def describe(self) -> dict[str, Any]:
        """What must be the same on all workers, as JSON values: names, and hashes of the data."""
        loss = self.loss
        assert isinstance(loss, Loss)
        return {
            "name": self.name,
            "head": self.head,
            "num_outputs": self.num_outputs,
            "loss": loss.name,
            "metrics": [metric.describe() for metric in self.metrics],
            "data": {
                split: fingerprint(getattr(self, split))
                for split in SPLITS
                if getattr(self, split) is not None
            },
        }

    def _where(self, split: str) -> str:
        return f"task {self.name!r}, {split} data"

    def _check_metrics(self, split: str) -> None:
        for metric in self.metrics:
            own = metric.of_model
            if own is not None and split != "train" and split not in own.splits:
                raise ValueError(
                    f"task {self.name!r} has {split} data, but its metric {metric.name!r} has "
                    f"none: give the metric {split} data of its own, or the task no {split} data"
                )

    def _check_split(self, split: str) -> None:
        data: Data = getattr(self, split)
        where = self._where(split)
        if len(data) == 0:
            raise ValueError(f"{where}: no examples; give at least one")
        first = data[[0]]
        if LABELS not in first:
            raise ValueError(
                f"{where}: no column {LABELS!r} among {sorted(first)}; rename the labels' column"
            )
        assert isinstance(self.loss, Loss)
        if not self.loss.classification:
            return
        labels = _labels(data)
        if labels.is_floating_point():
            raise ValueError(f"{where}: classes must be integers, got {labels.dtype}")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_outputs:
            raise ValueError(
                f"{where}: labels lie in {low}..{high}, but the head has {self.num_outputs} "
                f"outputs, for labels 0..{self.num_outputs - 1}"
            )
        if split == "train" and low == high:
            raise ValueError(
                f"{where}: all {len(data)} examples have the label {low}; a classifier needs at "
                f"least two classes"
            )


def check_tasks(tasks: Sequence[Task]) -> tuple[Task, ...]:
    """The tasks as a tuple, if they can stand in one study."""
    if not tasks:
        raise ValueError("a study needs at least one task, got none")
    names = [task.name for task in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two tasks have the name {twice[0]!r}; names must differ: {names}")
    sizes: dict[str | None, tuple[str, int]] = {}
    for task in tasks:
        other, size = sizes.setdefault(task.head, (task.name, task.num_outputs))
        if size != task.num_outputs:
            raise ValueError(
                f"tasks {other!r} and {task.name!r} share the head {task.head!r} but want {size} "
                f"and {task.num_outputs} outputs"
            )
    return tuple(tasks)


def check_name(what: str, name: str | None) -> None:
    """Raise `ValueError` unless the name can be a part of others."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(
            f"{what} name must be letters, digits, '_' and '-' (it names parameters, attributes "
            f"and files), got {name!r}"
        )
    if len(name) > MOST_LETTERS:
        raise ValueError(
            f"{what} name has {len(name)} letters, expected at most {MOST_LETTERS} (it is a part "
            f"of file names): {name[:20]}..."
        )
    if hasattr(nn.ModuleDict(), name):
        raise ValueError(f"{what} name {name!r} is a word that torch modules need; take another")


def _labels(data: Data) -> Tensor:
    columns = getattr(data, "columns", None)
    if isinstance(columns, dict):
        return torch.as_tensor(columns[LABELS])
    rows = torch.split(torch.arange(len(data)), 4096)
    return torch.cat([torch.as_tensor(data[part.tolist()][LABELS]) for part in rows])
