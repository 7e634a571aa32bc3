"""Tables in files, and what their cells mean: the same in every format."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

TABLES = "a .csv, .tsv, .json, .jsonl or .parquet file"

Row = Mapping[str, Any]

_LINE_END = re.compile(r"\r\n|\r|\n")
_LONGEST_CELL = 2**31 - 1  # characters; Python's csv stops at 131072 unless told otherwise
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
_FEW = 20  # rows, of which classes may well occur once
_WHOLE = re.compile(r"([-+]?\d+)\.0+")
_NO_NUMBERS = {"nan", "NaN", "NA", "N/A", "null", "NULL", "None"}
_TRUTHS = {"true": "True", "false": "False"}


def read_table(path: Path) -> list[Row]:
    """The rows of a table, each with all of its columns; what an object of JSON lacks is None."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; expected {TABLES}")
    kind = path.suffix.lower()
    if kind not in (".csv", ".tsv", ".json", ".jsonl", ".parquet"):
        raise ValueError(f"can't read {path}; expected {TABLES}")
    if kind == ".parquet":
        return _parquet(path)
    text = _decoded(path)
    if kind in (".csv", ".tsv"):
        rows = _cells(path, text)
    elif text.lstrip().startswith("["):
        rows = _filled(_json(path, text), path)
    else:
        rows = _filled(list(_json_lines(path, text)), path)
    if not rows:
        raise ValueError(f"{path}: no rows{'' if text.strip() else ', the file is empty'}")
    return rows


def _parquet(path: Path) -> list[Row]:
    from pyarrow import ArrowException, parquet  # type: ignore[import-untyped] # with datasets

    try:
        rows: list[Row] = parquet.read_table(path).to_pylist()
    except ArrowException as error:
        raise ValueError(f"{path} is damaged or not in the format Parquet: {error}") from error
    if not rows:
        raise ValueError(f"{path}: no rows")
    return rows


def _decoded(path: Path) -> str:
    """The file's text without its byte order mark."""
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = len(re.split(rb"\r\n|\r|\n", raw[: error.start]))
        shown = raw[max(0, error.start - 20) : error.start + 20].decode("utf-8", "replace")
        raise ValueError(
            f"{path}, line {line}: {path.name} is not UTF-8 (at {shown!r}); save it in that "
            f"encoding, which Excel calls CSV UTF-8"
        ) from None
    if "\0" in text:
        line = len(_LINE_END.split(text[: text.index("\0")]))
        raise ValueError(
            f"{path}, line {line}: a byte 0; is the file UTF-16, or no text? Save it as UTF-8"
        )
    return text


def _cells(path: Path, text: str) -> list[Row]:
    header = _LINE_END.split(text, maxsplit=1)[0]
    # Spreadsheets of many countries write semicolons; the comma is theirs in numbers.
    delimiter = next((sign for sign in "\t,;" if sign in header), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    columns: list[str] | None = None
    line = 1  # where the row begins that is read
    before = csv.field_size_limit(_LONGEST_CELL)  # of the whole process: put back below
    try:
        for cells in reader:
            if not cells:  # an empty line
                pass
            elif columns is None:
                columns = cells
                if twice := sorted({c for c in columns if c and columns.count(c) > 1}):
                    raise ValueError(f"{path}, line {line}: two columns {twice[0]!r}; rename one")
            elif len(cells) != len(columns):
                raise ValueError(
                    f"{path}, line {line}: row {len(rows) + 1} has not {len(columns)} cells, as "
                    f"the first line has, but {len(cells)}; are there commas in texts without "
                    f"quotes?"
                )
            else:
                rows.append(dict(zip(columns, cells)))
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {line}: row {len(rows) + 1} can't be read: {error}; a cell that begins "
            f'with a quote ends with one, and quotes in it are doubled: "so ""to say"""'
        ) from None
    finally:
        csv.field_size_limit(before)
    return rows


def _json_lines(path: Path, text: str) -> Iterator[Any]:
    # Not `splitlines`: to JSON U+2028 and its like are signs as any other.
    for number, line in enumerate(_LINE_END.split(text), 1):
        if line.strip():
            yield _json(path, line, number)


def _json(path: Path, text: str, line: int | None = None) -> Any:
    """What the text says, which is a line of the file or all of it."""
    where = str(path) if line is None else f"{path}, line {line}"
    try:
        found = json.loads(text, object_pairs_hook=_object)
        if re.search(r"\\u[dD][89a-fA-F]", text):  # half of a pair, without the other one, perhaps
            json.dumps(found, ensure_ascii=False).encode()
        return found
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {line or error.lineno}: not JSON: {error.msg} (column {error.colno}); "
            f"expected a list of objects, or an object a line"
        ) from None
    except UnicodeEncodeError:
        problem = r"half of a character (\ud800 to \udfff) without the other half"
    except RecursionError:
        problem = "too many values within values"
    except ValueError as error:  # a name that stands twice, an integer of thousands of digits
        problem = str(error)
    raise ValueError(f"{where}: {problem}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} stands twice in an object")
    return found


def _filled(found: list[Any], path: Path) -> list[Row]:
    for number, row in enumerate(found, 1):
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}: expected objects, in one list or one a line; row {number} is {row!r:.60}"
            )
    columns = {column: None for row in found for column in row}
    return [{column: row.get(column) for column in columns} for row in found]


def present(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    """The rows with these columns' missing values None, whatever the format calls them.

    Missing are null, what no number is (NaN), and a cell that is empty or blank. Words for it,
    such as NA, are words here; `spelled_labels` knows columns of numbers.
    """
    return [
        {**row, **{column: _present(row[column], column, number) for column in columns}}
        for number, row in enumerate(rows, 1)
    ]


def _present(value: Any, column: str, row: int) -> Any:
    if value is None or (isinstance(value, (float, Decimal)) and math.isnan(value)):
        return None
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, (int, float, Decimal)):
        return value
    raise ValueError(
        f"row {row}: {column!r} is {value!r:.60} ({type(value).__name__}), expected a text or a "
        f"number"
    )


def spelled_labels(splits: Mapping[str, Sequence[Any]]) -> dict[str, list[str | None]]:
    """Labels by split as texts, spelled alike whatever the format.

    Formats differ in types: what is 1 in one file is 1.0 in another, as programs write a column of
    integers of which some are missing, and true, True, TRUE are one. So in a column of numbers
    alone, 1.0 is spelled 1, and words for a missing number (nan, NA, N/A, null, None) are missing;
    in one of truth values alone, they are spelled True and False.
    """
    texts = {
        split: [None if value is None else str(value) for value in column]
        for split, column in splits.items()
    }
    seen = {text for column in texts.values() for text in column if text is not None}
    numbers = seen - _NO_NUMBERS
    if numbers and all(map(_NUMBER.fullmatch, numbers)):
        names: dict[str, str | None] = {text: _WHOLE.sub(r"\1", text) for text in numbers}
    elif seen and all(text.lower() in _TRUTHS for text in seen):
        names = {text: _TRUTHS[text.lower()] for text in seen}
    else:
        return texts
    return {
        split: [None if text is None else names.get(text) for text in column]
        for split, column in texts.items()
    }


def label_order(labels: Sequence[str]) -> Callable[[str], Any]:
    """Key to sort by: numbers by size, all else by letter."""
    if all(map(_NUMBER.fullmatch, labels)):
        return lambda label: (float(label), label)
    return str


def measures(labels: Sequence[str]) -> bool:
    """Whether labels are measured numbers: not all whole, and hardly one twice."""
    numbers = all(map(_NUMBER.fullmatch, labels))
    whole = all(float(label).is_integer() for label in labels) if numbers else True
    return not whole and 2 * len(set(labels)) > len(labels) > _FEW
