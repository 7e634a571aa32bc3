"""The text study's data as a CSV file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from studies.text import table


def test_every_text_has_one_of_the_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(cache: Path, **sizes: int) -> dict[str, Any]:
        features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
        rows = {"text": ['b, "c"', "a"], "label": [0, 1]}
        return {task: {"train": Dataset.from_dict(rows, features)} for task in table.LABELS}

    monkeypatch.setattr(table, "load_tasks", load)
    assert table.write_table(tmp_path / "posts.csv", tmp_path, size=2) == 6
    with (tmp_path / "posts.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["text", "sentiment", "author", "topic"]
    assert [row["text"] for row in rows] == ["a"] * 3 + ['b, "c"'] * 3
    labels = [{row[name] for name in list(row)[1:]} for row in rows]
    assert labels == [{"", "yes"}] * 3 + [{"", "no"}] * 3
