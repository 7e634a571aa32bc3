"""Tables of every format: the same cells mean the same, and errors name file, line and task."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from optuna_merge.definition._data import Examples, read_examples
from optuna_merge.definition._sections import Data

ROWS = [{"text": f"w{i}", "label": i % 2} for i in range(40)]


def examples(folder: Path, **settings: Any) -> Examples:
    return read_examples(
        "tone",
        Data(**settings),
        folder,
        images=False,
        fail=lambda key, message: ValueError(f"[{key}] {message}"),
    )


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table(rows: list[dict[str, Any]], delimiter: str = ",", end: str = "\n") -> str:
    """As a spreadsheet or pandas writes it: what is missing is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(
        text, list(rows[0]), delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL
    )
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path / "train.parquet")


def _written(kind: str) -> Callable[[Path, list[dict[str, Any]]], dict[str, Any]]:
    def write(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if kind == "parquet":
            parquet(folder / "hub", rows)
            return {"dataset": "hub", "validation": 0.25}
        name, text = {
            "csv": ("a.csv", table(rows)),
            "crlf": ("a.csv", table(rows, end="\r\n")),
            "cr": ("a.csv", table(rows, end="\r")),
            "tsv": ("a.TSV", table(rows, "\t")),
            "semicolons": ("a.csv", table(rows, ";")),
            "mark": ("a.csv", "\ufeff" + table(rows)),
            "jsonl": ("a.jsonl", lines(rows)),
            "jsonl mark": ("a.jsonl", "\ufeff" + lines(rows)),
            "jsonl crlf": ("a.jsonl", lines(rows).replace("\n", "\r\n\r\n")),
            "json": ("a.json", json.dumps(rows, indent=1)),
            "json mark": ("a.json", "\ufeff" + json.dumps(rows)),
        }[kind]
        (folder / name).write_bytes(text.encode())
        return {"train": name, "validation": 0.25}

    return write


FORMATS = (
    "csv", "crlf", "cr", "tsv", "semicolons", "mark", "jsonl", "jsonl mark", "jsonl crlf", "json",
    "json mark", "parquet",
)  # fmt: skip


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("values", "missing", "names"),
    [
        ([0, 1], [None], ("0", "1")),
        ([0.0, 1.0, 10.0, 2.0], [None, float("nan")], ("0", "1", "2", "10")),
        ([0.5, 10.5, 2.0], [None, float("nan")], ("0.5", "2", "10.5")),
        (["0", "1", "-1.0"], ["", "  ", "nan", "NaN"], ("-1", "0", "1")),
        (["4", "5"], ["NA", "N/A", "null", "None"], ("4", "5")),
        ([True, False], [None], ("False", "True")),
        (["true", "FALSE"], ["", " \t"], ("False", "True")),
        (["true", "false", "half-true"], ["", " "], ("false", "half-true", "true")),
        (["1.0", "v2"], ["", " "], ("1.0", "v2")),
        (["nan", "naan", "NA", "None", "null"], ["", " "], ("NA", "None", "naan", "nan", "null")),
        (["007", "7.0"], ["", " "], ("007", "7")),
    ],
)
def test_labels_mean_the_same_in_every_format(
    tmp_path: Path, kind: str, values: list[Any], missing: list[Any], names: tuple[str, ...]
) -> None:
    column = values * 20 + missing * 5
    rows = [{"text": f"w{i}", "label": value} for i, value in enumerate(column)]
    found = examples(tmp_path, **_written(kind)(tmp_path, rows))
    assert sorted(found.names) == sorted(names)
    if "007" not in names:  # as large as 7: by letter
        assert found.names == names
    assert sum(map(len, found.rows.values())) == 20 * len(values)
    for split in found.rows:
        assert len(found.rows[split]) == len(found.labels[split]) > 0


@pytest.mark.parametrize("kind", FORMATS)
def test_a_missing_text_is_an_empty_one(tmp_path: Path, kind: str) -> None:
    rows = [
        {"text": "nan" if i == 5 else None if i % 3 else f"w{i}", **ROWS[i]} for i in range(40)
    ]
    rows = [row | {"text": ("nan" if i == 6 else f"w{i}") if i % 3 == 0 else None}
            for i, row in enumerate(rows)]  # fmt: skip
    found = examples(tmp_path, **_written(kind)(tmp_path, rows))
    texts = [row["text"] for part in found.rows.values() for row in part]
    assert texts.count(None) == 26
    assert texts.count("nan") == 1  # a word
    assert "" not in texts


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "text",
    ["a\u2028b", "a\u2029b", "a\x85b", "a\x1cb", "a\x0bb", "a\nb", 'say ""b', "x" * 200_000],
)
def test_every_sign_belongs_to_its_text(tmp_path: Path, kind: str, text: str) -> None:
    rows = [*ROWS, {"text": text, "label": 1}]
    before = csv.field_size_limit()
    found = examples(tmp_path, **_written(kind)(tmp_path, rows))
    texts = [row["text"] for part in found.rows.values() for row in part]
    assert len(texts) == 41
    assert texts.count(text) == 1
    assert csv.field_size_limit() == before


GOOD = lines(ROWS[:30])
CSV = table(ROWS[:30])


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", GOOD + '{"text": "a", "la\n' + GOOD, "a.jsonl, line 31: not JSON: Unterminat"),
        ("a.jsonl", GOOD + "\n\n{]\n" + GOOD, "a.jsonl, line 33: not JSON"),
        ("a.jsonl", GOOD + '{"text": "\x01"}\n', "a.jsonl, line 31: not JSON: Invalid control"),
        ("a.jsonl", GOOD + "3\n", "a.jsonl: expected objects, in one list or one a line; row 31"),
        ("a.jsonl", GOOD + '{"label": 1, "label": 0}\n', "line 31: the name 'label' stands twice"),
        ("a.jsonl", GOOD + '{"text": "\\ud83d", "label": 1}\n', "line 31: half of a character"),
        ("a.jsonl", GOOD + "[" * 100_000 + "\n", "line 31: too many values within values"),
        ("a.jsonl", GOOD + '{"label": ' + "9" * 5000 + "}", "line 31: Exceeds the limit"),
        (
            "a.jsonl",
            GOOD + '{"text": ["a"], "label": 1}\n',
            "a.jsonl, row 31: 'text' is ['a'] (li",
        ),
        (
            "a.jsonl",
            GOOD + '{"text": "a", "label": {"a": 1}}',
            "row 31: 'label' is {'a': 1} (dict",
        ),
        ("a.json", '[\n{"text": "a"},\n{"text": "b", "lab\n]', "a.json, line 3: not JSON"),
        ("a.json", '{"data": [\n{"text": "a"}\n]}', "a.json, line 1: not JSON"),
        ("a.json", "[]", "a.json: no rows"),
        ("a.jsonl", "", "a.jsonl: no rows, the file is empty"),
        ("a.jsonl", "\n \n", "a.jsonl: no rows, the file is empty"),
        ("a.csv", "", "a.csv: no rows, the file is empty"),
        ("a.csv", "\ufeff", "a.csv: no rows, the file is empty"),
        ("a.csv", "text,label\r\n", "a.csv: no rows"),
        ("a.csv", CSV + "a,b,c\n" + CSV, "a.csv, line 32: row 31 has not 2 cells"),
        ("a.csv", CSV + '"a\nb",0\n\na\n', "a.csv, line 35: row 32 has not 2 cells, as the first"),
        (
            "a.csv",
            CSV + '"a\nb,1\n',
            "a.csv, line 32: row 31 can't be read: unexpected end of data",
        ),
        ("a.csv", CSV + '"a" b,1\n', "a.csv, line 32: row 31 can't be read: ',' expected after"),
        ("a.csv", "text,label,label\na,0,1\n", "a.csv, line 1: two columns 'label'; rename one"),
        ("a.csv", CSV + "a\0b,1\n", "a.csv, line 32: a byte 0; is the file UTF-16"),
        ("a.csv", CSV.encode("utf-16-le"), "a.csv, line 1: a byte 0; is the file UTF-16"),
        ("a.csv", CSV.encode("utf-16"), "a.csv is not UTF-8"),
        ("a.csv", (CSV + "caf\xe9,1\n").encode("latin-1"), "a.csv, line 32: "),
        ("a.tsv", (CSV + "caf\xe9,1\n").encode("latin-1"), "a.tsv is not UTF-8 (at"),
        ("a.jsonl", (GOOD + '{"text": "caf\xe9"}').encode("latin-1"), "a.jsonl, line 31: "),
        ("a.json", ("[" + GOOD + "\xe9").encode("latin-1"), "a.json, line 31: "),
        (
            "a.csv.gz",
            b"\x1f\x8b",
            "a.csv.gz; expected a .csv, .tsv, .json, .jsonl or .parquet file",
        ),
        ("a.parquet", b"PAR1", "a.parquet is damaged or not in the format Parquet: "),
    ],
)
def test_tables_that_can_not_be_read_are_named(
    tmp_path: Path, name: str, content: str | bytes, told: str
) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    (tmp_path / "good.jsonl").write_text(GOOD)
    for split, other in (("train", "validation"), ("validation", "train")):
        with pytest.raises(ValueError) as error:
            examples(tmp_path, **{split: name, other: "good.jsonl"})
        text = str(error.value)
        assert text.startswith(f"[{split}] task 'tone', {split} data: ")
        assert told in text


@pytest.mark.parametrize("content", [b"PAR1 but no table", b"text,label\n\xff,1\n"])
def test_datasets_that_can_not_be_read_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "hub").mkdir()
    name = "train.parquet" if content.startswith(b"PAR1") else "train.csv"
    (tmp_path / "hub" / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"\[dataset\] task 'tone', train data: \w+: "):
        examples(tmp_path, dataset="hub", validation=0.5)


def test_columns_of_a_parquet_file_that_hold_no_texts_are_refused(tmp_path: Path) -> None:
    parquet(tmp_path / "hub", [{"text": b"bytes", "label": 1}])
    with pytest.raises(ValueError, match=r"hub, row 1: 'text' is b'bytes' \(bytes\), expected a"):
        examples(tmp_path, dataset="hub", validation=0.5)


def test_numbers_that_were_measured_are_no_classes(tmp_path: Path) -> None:
    grades = [{"text": "w", "label": "" if i % 9 == 0 else f"{i / 7:.3f}"} for i in range(60)]
    (tmp_path / "a.csv").write_text(table(grades))
    with pytest.raises(ValueError, match=r"\[label\] task 'tone': .* no classes.*mean_squared"):
        examples(tmp_path, train="a.csv", validation=0.2)
    stars = [{"text": "w", "label": i % 9 / 2} for i in range(60)]
    (tmp_path / "a.csv").write_text(table(stars))
    assert len(examples(tmp_path, train="a.csv", validation=0.2).names) == 9
    numbers = [{"text": "w", "label": i // 2} for i in range(60)]
    (tmp_path / "a.csv").write_text(table(numbers))
    assert examples(tmp_path, train="a.csv", validation="a.csv").names[:3] == ("0", "1", "2")


def test_a_share_without_a_labelled_row_says_what_to_do(tmp_path: Path) -> None:
    rows = [{"text": "w", "label": "a" if i < 2 else ""} for i in range(60)]
    (tmp_path / "a.csv").write_text(table(rows))
    told = "no row has a label in 'label': 2 rows have one, and chance .* larger share"
    with pytest.raises(ValueError, match=told):
        examples(tmp_path, train="a.csv", validation=0.02)
