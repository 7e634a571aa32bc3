"""Tables and image folders that a YAML definition names, as splits with integer labels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from optuna_merge.definition._sections import Data, Sources
from optuna_merge.definition._tables import (
    Row,
    label_order,
    measures,
    present,
    read_table,
    spelled_labels,
)
from optuna_merge.exceptions import OptunaMergeError

_logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
_IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Examples:
    """A task's rows by split with labels as text, and the classes (as `declared`, or sorted)."""

    rows: dict[str, list[Row]]
    labels: dict[str, list[str]]
    names: tuple[str, ...]
    declared: bool = False


def read_examples(
    task: str, data: Data, folder: Path, *, images: bool, fail: Callable[[str, str], ValueError]
) -> Examples:
    """Read a task's splits, with labels; rows without one are left out."""
    if images and data.dataset is not None:
        raise fail(
            "dataset",
            f"task {task!r}: dataset: is for models of kind: text; images are read from folders",
        )
    text = (data.text,) if isinstance(data.text, str) else data.text
    column = "label" if images else data.label
    wanted = dict.fromkeys(text, "text") | {data.label: "label"}
    parts, names = read_rows(task, data, folder, {} if images else wanted, fail, label=column)
    values = {split: [row[column] for row in rows] for split, rows in parts.items()}
    spelled = values if images or names is not None else spelled_labels(values)
    labels: dict[str, list[str]] = {}
    for split, rows in parts.items():
        parts[split] = [row for row, label in zip(rows, spelled[split]) if label is not None]
        labels[split] = [label for label in spelled[split] if label is not None]
        if not parts[split]:
            told = _unlabelled(getattr(data, split), spelled)
            raise fail(
                split, f"task {task!r}, {split} data: no row has a label in {column!r}{told}"
            )
    found = tuple(sorted(set(labels["train"]), key=label_order(labels["train"])))
    if not images and names is None and measures(labels["train"]):
        raise fail(
            "label",
            f"task {task!r}: {column!r} has {len(found)} different numbers in "
            f"{len(labels['train'])} training rows, which are no classes. Sort them into a few in "
            f"a column of its own, or learn the numbers by a definition in Python, with "
            f"optuna_merge.tasks.mean_squared_error",
        )
    for split, seen in labels.items():
        unseen = sorted(set(seen) - set(names or found))
        if unseen and isinstance(getattr(data, split), float):
            _leave_out(task, split, parts, labels, unseen)
        elif unseen:
            raise fail(
                "label",
                f"task {task!r}, {split} data: the label {unseen[0]!r} does not occur in the "
                f"training data, where there are {_some(found)}; rows whose label is empty are "
                f"left out, as those of rare labels may be",
            )
        if not parts[split]:
            raise fail(
                split, f"task {task!r}, {split} data: no row has a label of the training data"
            )
    return Examples(parts, labels, names or found, names is not None)


def _unlabelled(source: object, labels: Mapping[str, Sequence[object]]) -> str:
    """What to do where chance has put no row with a label into a share of them."""
    if not isinstance(source, float):
        return ""
    count = sum(label is not None for column in labels.values() for label in column)
    return (
        f": {count} rows have one, and chance has put none of them into a share of {source:g}; "
        f"give more labelled rows, a larger share, or a file of its own"
    )


def _leave_out(
    task: str,
    split: str,
    parts: dict[str, list[Row]],
    labels: dict[str, list[str]],
    unseen: Sequence[str],
) -> None:
    """Leave out of a share what chance has put there alone: no model could have learnt it."""
    kept = [i for i, label in enumerate(labels[split]) if label not in unseen]
    _logger.warning(
        "task %s: %d of %d rows of the %s data are left out, because the training data have no "
        "row of their class: %s",
        task,
        len(labels[split]) - len(kept),
        len(labels[split]),
        split,
        _some(unseen),
    )
    parts[split] = [parts[split][i] for i in kept]
    labels[split] = [labels[split][i] for i in kept]


def beside(folder: Path, name: str) -> Path:
    """A path of a definition: relative to its folder, or to the home folder where it begins so."""
    return folder / Path(name).expanduser()


def read_rows(
    task: str,
    data: Sources,
    folder: Path,
    columns: Mapping[str, str],
    fail: Callable[[str, str], ValueError],
    *,
    label: str | None = None,
    plain: bool = True,
) -> tuple[dict[str, list[Row]], tuple[str, ...] | None]:
    """Read a task's splits, and the names of the classes, if the data say so themselves.

    A share for validation or test takes so many of the training rows, at random, but the same ones
    for every task with the same file. `columns` must be there, each with the key that names it
    (none: folders of images), and hold texts and numbers alone if they are `plain`; `label` is the
    one whose classes a dataset of the hub may know.
    """
    if data.train is None and data.dataset is None:
        raise fail("train", f"task {task!r} has no training data; give train: or dataset:")
    if data.validation is None and data.dataset is None:
        raise fail(
            "validation",
            f"task {task!r} has no validation data; give validation: a file, or a share of the "
            f"training data such as 0.2",
        )
    parts: dict[str, list[Row]] = {}
    names: tuple[str, ...] | None = None
    for split in SPLITS:
        source = getattr(data, split)
        if data.dataset is not None and source is None and split != "test":
            source = split
        if not isinstance(source, str):
            continue
        key = split if data.dataset is None else "dataset"

        def failed(told: str, key: str = key, split: str = split) -> ValueError:
            return fail(key, f"task {task!r}, {split} data: {told}")

        try:
            if not columns:
                parts[split] = _image_rows(beside(folder, source))
                continue
            if data.dataset is not None:
                rows, names = _hub_rows(data, source, folder, label)
            else:
                rows = read_table(beside(folder, source))
        except Exception as error:  # readers of many formats raise what they like
            raise failed(reason_of(error)) from error
        if missing := [name for name in columns if rows and name not in rows[0]]:
            told = f"no column {missing[0]!r} among {list(rows[0])}"
            raise failed(told, columns[missing[0]])
        try:
            parts[split] = present(rows, tuple(columns)) if plain else rows
        except ValueError as error:
            raise failed(f"{data.dataset or source}, {error}") from error
    _take_shares(parts, data, lambda key, told: fail(key, f"task {task!r}: {told}"))
    return parts, names


def common_names(tasks: Sequence[Examples]) -> tuple[str, ...]:
    """Names of the classes of tasks that share a head."""
    if len({task.names for task in tasks}) == 1:
        return tasks[0].names
    every = [name for task in tasks for name in task.names]
    return tuple(sorted(set(every), key=label_order(every)))


def reason_of(error: BaseException) -> str:
    """The message where it is made for readers, as of tables; else types and all causes."""
    if type(error) is ValueError or isinstance(error, (OSError, ImportError, OptunaMergeError)):
        return str(error)
    told = f"{type(error).__name__}: {error}"
    return told if error.__cause__ is None else f"{told}: {reason_of(error.__cause__)}"


def _take_shares(
    parts: dict[str, list[Row]], data: Sources, fail: Callable[[str, str], ValueError]
) -> None:
    rows = parts["train"]
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    start = 0
    for split in ("validation", "test"):
        share = getattr(data, split)
        if not isinstance(share, float):
            continue
        count = round(share * len(rows))
        if count < 1 or start + count >= len(rows):
            raise fail(split, f"{share:g} of {len(rows)} examples leaves too few; give files")
        parts[split] = [rows[i] for i in sorted(order[start : start + count])]
        start += count
    if start:
        parts["train"] = [rows[i] for i in sorted(order[start:])]


def _hub_rows(
    data: Sources, split: str, folder: Path, label: str | None
) -> tuple[list[Row], tuple[str, ...] | None]:
    from datasets import load_dataset

    name = str(data.dataset)
    local = beside(folder, name)
    table = load_dataset(str(local) if local.exists() else name, data.config, split=split)
    names = None if label is None else getattr(table.features.get(label), "names", None)
    rows: list[Row] = [dict(row) for row in table]
    if label is None or names is None:
        return rows, None
    named: list[Row] = [
        {**row, label: None if row[label] in (None, -1) else names[row[label]]} for row in rows
    ]
    return named, tuple(names)


def _image_rows(folder: Path) -> list[Row]:
    """A row per image below a folder of classes; what is hidden (`.name`) is neither."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; expected one with a subfolder per class")
    rows: list[Row] = [
        {"image": str(path), "label": place.name}
        for place in sorted(folder.iterdir())
        if place.is_dir()
        for path in sorted(place.rglob("*"))
        if path.suffix.lower() in _IMAGES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not rows:
        raise ValueError(f"no images in subfolders of {folder}; expected one subfolder per class")
    return rows


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:8]))
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
