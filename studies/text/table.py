"""The three text tasks as one CSV file, as people have such data: a column per label.

    python studies/text/table.py posts.csv

Columns are `text`, `sentiment`, `author` and `topic`; each text has one of the labels, the others
are empty. README's "Your own data in five minutes" starts from it.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import typer

from optuna_merge._base.files import atomic_path
from studies.fetch import default_cache
from studies.text.data import body_path, load_tasks

LABELS = {"movies": "sentiment", "tweets": "author", "newsgroups": "topic"}


def write_table(path: Path, cache: Path, *, size: int) -> int:
    """Write so many training texts of each task, in an order by text; return the rows' number."""
    rows = []
    for task, splits in load_tasks(cache, train=size, validation=1, test=1).items():
        names = splits["train"].features["label"].names
        for text, label in zip(splits["train"]["text"], splits["train"]["label"]):
            empty = dict.fromkeys(LABELS.values(), "")
            rows.append({"text": text} | empty | {LABELS[task]: names[label]})
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", *LABELS.values()])
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["text"]))
    return len(rows)


def main(
    path: Annotated[Path, typer.Argument(help="The CSV file; is replaced.")],
    size: Annotated[int, typer.Option(help="Texts a task.")] = 600,
) -> None:
    """Write the three text tasks as one CSV file."""
    cache = default_cache()
    print(f"{path}: {write_table(path, cache, size=size)} rows")
    print(f"a small pretrained body for them: {body_path(cache)}")


if __name__ == "__main__":
    typer.run(main)
