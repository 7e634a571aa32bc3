"""Tables by split as the builders of tasks take them: checked, and made a `Task`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna_merge.tasks._data import Data
from optuna_merge.tasks._task import SPLITS, Task


def tables_of(name: str, splits: Any, columns: Sequence[str]) -> list[tuple[str, str, Any]]:
    """Split, what errors call it, and table: all of them have rows and these columns."""
    found = []
    for split in SPLITS:
        if split not in splits:
            if split != "test":
                raise ValueError(f"task {name!r}: no split {split!r} among {sorted(splits)}")
            continue
        table, where = splits[split], f"task {name!r}, {split} data"
        if missing := [column for column in columns if column not in table.column_names]:
            raise ValueError(f"{where}: no column {missing[0]!r} among {table.column_names}")
        if len(table) == 0:
            raise ValueError(f"{where}: no examples; give at least one")
        found.append((split, where, table))
    return found


def classification(
    name: str,
    data: Mapping[str, Data],
    train: Any,
    label: str,
    num_labels: int | None,
    options: Mapping[str, Any],
) -> Task:
    """A task of classes, whose number and names the training table's label column may know."""
    feature = train.features[label]
    declared = getattr(feature, "num_classes", None)
    if num_labels is None:
        num_labels = declared or max(train[label]) + 1
    if declared == num_labels:
        options = {"label_names": tuple(feature.names), **options}
    test = data.get("test")
    return Task(name, data["train"], data["validation"], num_labels, test=test, **options)
