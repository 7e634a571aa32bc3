"""Texts from CSV files, on a model of the Hugging Face hub.

    python examples/text_from_csv.py                          # a tiny random BERT, no network
    python examples/text_from_csv.py distilbert-base-uncased

Two domains of reviews share one head, which is merged like the body. `optuna-merge init` writes a
YAML file that does the same without Python.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

from datasets import Dataset
from tiny import run, tiny_body

import optuna_merge as om
from optuna_merge.models import from_transformers
from optuna_merge.tasks import text_task


def write_reviews(path: Path, *, good: str, bad: str) -> None:
    """Reviews of eight words. One word decides the label; each domain has another one."""
    draw = random.Random(path.name)
    lines = ["text,label"]
    for i in range(240):
        words = [f"w{draw.randrange(20, 60)}" for _ in range(7)] + [good if i % 2 else bad]
        draw.shuffle(words)
        lines.append(f"{' '.join(words)},{'good' if i % 2 else 'bad'}")
    path.write_text("\n".join(lines) + "\n")


def main() -> None:
    """Which weights of books and films give the best classifier of both?"""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        body = sys.argv[1] if len(sys.argv) > 1 else tiny_body("bert", folder)
        write_reviews(folder / "books.csv", good="w1", bad="w2")
        write_reviews(folder / "films.csv", good="w3", bad="w4")
        tasks = []
        for domain in ("books", "films"):
            table = Dataset.from_csv(str(folder / f"{domain}.csv"), cache_dir=name)
            table = table.class_encode_column("label")  # names of classes become numbers
            parts = table.train_test_split(0.4, seed=0)
            splits = {"train": parts["train"], "validation": parts["test"]}
            tasks.append(text_task(domain, splits, body, max_length=16, head="sentiment"))
        definition = om.StudyDefinition(
            tasks=tasks,
            model=from_transformers(body, tasks),
            finetuning=om.FinetuneSettings(steps=40, batch_size=16, learning_rate=1e-2),
            posterior=om.PosteriorSettings(examples=32, damping_examples=48),
            score="worst",
        )
        run(definition, n_trials=12)


if __name__ == "__main__":
    main()
