"""Tables and image folders that a YAML definition names, as splits with integer labels."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optuna_merge.yaml_definition._schema import Data

SPLITS = ("train", "validation", "test")
_IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_TABLES = "a .csv, .tsv, .json or .jsonl file"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Examples:
    """The rows of a task by split, each with its label as text.

    Attributes:
        rows: By split; columns by name.
        labels: By split, as many.
        names: Of the classes, in order.
        declared: Whether the data say so themselves; else the order is that of numbers, or of
            letters.
    """

    rows: dict[str, list[Row]]
    labels: dict[str, list[str]]
    names: tuple[str, ...]
    declared: bool = False


def read_examples(
    task: str, data: Data, folder: Path, *, images: bool, fail: Callable[[str, str], ValueError]
) -> Examples:
    """Read a task's splits.

    A share for validation or test takes so many of the training rows, at random, but the same
    ones for every task with the same file. Rows without a label are left out (after that).

    Args:
        task: The task's name.
        data: Where they are.
        folder: Paths are relative to it.
        images: Folders of images, a subfolder per class; else tables or a dataset of the hub.
        fail: Key and message to the error to be raised.
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
        try:
            if images:
                parts[split] = _image_rows(folder / source)
            elif data.dataset is not None:
                parts[split], names = _hub_rows(data, source, folder)
            else:
                parts[split] = _table_rows(folder / source)
        except (OSError, ValueError) as error:
            key = "dataset" if data.dataset is not None else split
            raise fail(key, f"task {task!r}, {split} data: {error}") from error
    _take_shares(parts, data, lambda key, told: fail(key, f"task {task!r}: {told}"))
    labels: dict[str, list[str]] = {}
    for split, rows in parts.items():
        column = "label" if images else data.label
        missing = [c for c in _columns(data, images) if rows and c not in rows[0]]
        if missing:
            key = "label" if missing[0] == column else "text"
            raise fail(
                key,
                f"task {task!r}, {split} data: no column {missing[0]!r} among {list(rows[0])}",
            )
        parts[split] = [row for row in rows if row[column] not in (None, "")]
        labels[split] = [str(row[column]) for row in parts[split]]
        if not parts[split]:
            raise fail(split, f"task {task!r}, {split} data: no row has a label in {column!r}")
    found = tuple(sorted(set(labels["train"]), key=_order(labels["train"])))
    for split, seen in labels.items():
        if unseen := sorted(set(seen) - set(names or found)):
            raise fail(
                "label",
                f"task {task!r}, {split} data: the label {unseen[0]!r} does not occur in the "
                f"training data, where there are {_some(found)}; rows whose label is empty are "
                f"left out, as those of rare labels may be",
            )
    return Examples(parts, labels, names or found, names is not None)


def common_names(tasks: Sequence[Examples]) -> tuple[str, ...]:
    """Names of the classes of tasks that share a head."""
    if len({task.names for task in tasks}) == 1:
        return tasks[0].names
    every = [name for task in tasks for name in task.names]
    return tuple(sorted(set(every), key=_order(every)))


def _order(labels: Sequence[str]) -> Callable[[str], Any]:
    """Numbers by size, all else by letter."""
    return int if all(label.lstrip("-").isdecimal() for label in set(labels)) else str


def _columns(data: Data, images: bool) -> tuple[str, ...]:
    if images:
        return ("image", "label")
    text = (data.text,) if isinstance(data.text, str) else data.text
    return (*text, data.label)


def _take_shares(
    parts: dict[str, list[Row]], data: Data, fail: Callable[[str, str], ValueError]
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


def _table_rows(path: Path) -> list[Row]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; expected {_TABLES}")
    try:
        return _read_table(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it in that encoding") from error


def _read_table(path: Path) -> list[Row]:
    if path.suffix in (".csv", ".tsv"):
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            # Spreadsheets of many countries write semicolons; the comma is theirs in numbers.
            delimiter = next((sign for sign in "\t,;" if sign in header), ",")
            rows = csv.DictReader(file, delimiter=delimiter)
            found: list[Row] = list(rows)
            ragged = [i for i, row in enumerate(found) if None in row or None in row.values()]
            if ragged:
                raise ValueError(
                    f"{path}: row {ragged[0] + 1} has not {len(rows.fieldnames or ())} cells, as "
                    f"the first line has; are there commas in texts without quotes?"
                )
    elif path.suffix in (".json", ".jsonl"):
        text = path.read_text(encoding="utf-8")
        try:
            whole = text.lstrip().startswith("[")
            found = (
                json.loads(text)
                if whole
                else [json.loads(s) for s in text.splitlines() if s.strip()]
            )
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: not JSON: {error}") from None
        if not all(isinstance(row, dict) for row in found):
            raise ValueError(f"{path}: expected objects, in one list or one a line")
        columns = {column: None for row in found for column in row}
        found = [{column: row.get(column) for column in columns} for row in found]
    else:
        raise ValueError(f"can't read {path}; expected {_TABLES}")
    if not found:
        raise ValueError(f"{path}: no rows")
    return found


def _hub_rows(data: Data, split: str, folder: Path) -> tuple[list[Row], tuple[str, ...] | None]:
    from datasets import load_dataset

    name = str(data.dataset)
    local = folder / name
    table = load_dataset(str(local) if local.exists() else name, data.config, split=split)
    feature = table.features.get(data.label)
    names = getattr(feature, "names", None)
    rows: list[Row] = [dict(row) for row in table]
    if names is None:
        return rows, None
    named: list[Row] = [
        {**row, data.label: None if row[data.label] in (None, -1) else names[row[data.label]]}
        for row in rows
    ]
    return named, tuple(names)


def _image_rows(folder: Path) -> list[Row]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; expected one with a subfolder per class")
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    rows: list[Row] = [
        {"image": str(path), "label": place.name}
        for place in classes
        for path in sorted(place.rglob("*"))
        if path.suffix.lower() in _IMAGES
    ]
    if not rows:
        raise ValueError(f"no images in subfolders of {folder}; expected one subfolder per class")
    return rows


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:8]))
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
