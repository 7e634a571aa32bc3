"""Find the best weights of a merge of checkpoints that you already have, without training.

    python examples/existing_checkpoints.py                     # tiny random BERTs
    python examples/existing_checkpoints.py distilbert-base-uncased

The script first makes the checkpoints with a Trainer. For your own checkpoints change the paths:
folders, LoRA adapters or safetensors files of one base model. To compare the best merges with
finetunes, leave out anchor="none", and search with `om.open_search` and `om.Objective(fitted)`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import optuna
from own_trainer import accuracy, reviews
from tiny import tiny_body
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

import optuna_merge as om
from optuna_merge.definition import GivenRun
from optuna_merge.trials import suggest_weights

STEPS = 40


def main() -> None:
    """Search the task weights of the merge for the best worst accuracy."""
    with tempfile.TemporaryDirectory() as name:
        body = sys.argv[1] if len(sys.argv) > 1 else tiny_body("bert", Path(name))
        tokenizer = AutoTokenizer.from_pretrained(body)
        train, validation = (
            {
                task: reviews(i, size).map(lambda row: tokenizer(row["text"]))
                for i, task in enumerate(("films", "books", "games"))
            }
            for size in (200, 100)
        )

        def make_trainer(folder: str) -> Trainer:
            return Trainer(
                AutoModelForSequenceClassification.from_pretrained(body, num_labels=2),
                TrainingArguments(folder, max_steps=STEPS, learning_rate=3e-3),
                data_collator=DataCollatorWithPadding(tokenizer),
                eval_dataset=validation,
                compute_metrics=accuracy,
            )

        for task, data in train.items():  # what you have already
            trainer = make_trainer(f"{name}/{task}")
            trainer.train_dataset = data
            trainer.train()

        runs = {task: GivenRun(f"{name}/{task}/checkpoint-{STEPS}") for task in train}
        # Adam has left a curvature that costs nothing; the others' is taken from their loss.
        runs["games"] = GivenRun(runs["games"].path, curvature="optimizer")
        fitted = om.from_trainer(
            make_trainer, train, "eval_{task}_accuracy", f"{name}/work", runs=runs, anchor="none"
        )

        def worst(trial: optuna.Trial) -> float:
            return min(fitted.preview(suggest_weights(trial, fitted.names)).values.values())

        study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=0)
        )
        study.optimize(worst, n_trials=20)
        weights = suggest_weights(optuna.trial.FixedTrial(study.best_params), fitted.names)
        print(f"Best task weights: {weights} (worst accuracy {study.best_value:.3f})")
        model = make_trainer(f"{name}/merged").model
        model.load_state_dict(fitted.merged(weights), strict=False)  # then: save_pretrained


if __name__ == "__main__":
    main()
