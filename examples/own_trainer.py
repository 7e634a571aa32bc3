"""Your own transformers Trainer: how much of each of three domains is best for the worst of them?

    python examples/own_trainer.py                             # a tiny random BERT
    python examples/own_trainer.py distilbert-base-uncased

The Trainer may be any subclass, with any arguments, and its model may be a PEFT model.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import numpy as np
from datasets import Dataset
from tiny import tiny_body
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)

import optuna_merge as om


def reviews(domain: int, size: int) -> Dataset:
    """Texts whose class shows in a word, another one for each domain."""
    draw = random.Random(size + domain)
    rows = []
    for _ in range(size):
        words = [f"w{draw.randrange(30)}" for _ in range(6)]
        label = draw.randrange(2)
        words[draw.randrange(6)] = f"w{30 + 2 * domain + label}"
        rows.append({"text": " ".join(words), "label": label})
    return Dataset.from_list(rows)


def accuracy(found: EvalPrediction) -> dict[str, float]:
    """The metric, as a Trainer takes it."""
    return {"accuracy": float(np.mean(found.predictions.argmax(-1) == found.label_ids))}


def main() -> None:
    """All that a study needs of a Trainer is a function that makes it."""
    with tempfile.TemporaryDirectory() as name:
        body = sys.argv[1] if len(sys.argv) > 1 else tiny_body("bert", Path(name))
        tokenizer = AutoTokenizer.from_pretrained(body)
        domains = {"films": 0, "books": 1, "games": 2}

        def tokenised(size: int) -> dict[str, Dataset]:
            return {
                task: reviews(i, size).map(lambda row: tokenizer(row["text"]))
                for task, i in domains.items()
            }

        train, validation = tokenised(200), tokenised(100)

        def make_trainer(folder: str) -> Trainer:
            return Trainer(
                AutoModelForSequenceClassification.from_pretrained(body, num_labels=2),
                TrainingArguments(
                    folder, max_steps=40, per_device_train_batch_size=16, learning_rate=3e-3
                ),
                data_collator=DataCollatorWithPadding(tokenizer),
                eval_dataset=validation,
                compute_metrics=accuracy,
            )

        fitted = om.from_trainer(make_trainer, train, "eval_{task}_accuracy", name, score="worst")
        study = om.open_search(fitted, "own", fraction=0.5, warmup=4, seed=0)
        study.optimize(om.Objective(fitted, progress=False), n_trials=8)
        print(om.format_report(om.make_report(study, fitted)))


if __name__ == "__main__":
    main()
