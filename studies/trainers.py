"""The same study by the own training loop and by a transformers Trainer: do they agree?

    python studies/trainers.py

Three orientations of scikit-learn's digits, as in studies/digits, finetuned at uniform and nine
random weightings by both, and previewed by both. The own loop takes 32 examples of each task in
every step, the Trainer 96 that are sampled; optimizer, rates and steps are the same. Prints the
rank correlations and writes all numbers to studies/results/trainers.json.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

import optuna_merge as om
from optuna_merge._base.files import write_json
from optuna_merge.fitting import Workbench
from studies.digits.data import Split, load_tasks
from studies.digits.optimize import definition, fresh_vit, pretrain
from studies.fetch import default_cache

RESULTS = Path(__file__).parent / "results" / "trainers.json"
COUNT = 10


class Images(Dataset[Any]):
    """A split as rows, as a Trainer takes them."""

    def __init__(self, split: Split) -> None:
        self._split = split

    def __len__(self) -> int:
        return len(self._split["labels"])

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {name: column[row] for name, column in self._split.items()}


class Classifier(nn.Module):
    """The study's body and head, with a loss as a Trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = fresh_vit()
        pretrain(self.body, self.head, default_cache())

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss and logits."""
        logits = self.head(self.body(pixel_values))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def make_trainer(folder: str) -> Trainer:
    """With what `definition()` finetunes by."""
    settings = definition().finetuning
    arguments = TrainingArguments(
        folder,
        max_steps=settings.steps,
        per_device_train_batch_size=3 * settings.batch_size,
        per_device_eval_batch_size=300,
        learning_rate=settings.peak_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=math.ceil(settings.warmup * settings.steps),
        max_grad_norm=settings.max_grad_norm,
        use_cpu=True,
        disable_tqdm=True,
    )
    return Trainer(
        Classifier(),
        arguments,
        eval_dataset={task: Images(data["validation"]) for task, data in load_tasks().items()},
        compute_metrics=lambda found: {
            "accuracy": float(np.mean(found.predictions.argmax(-1) == found.label_ids))
        },
    )


def measured(workbench: Workbench, weightings: list[dict[str, float]]) -> dict[str, Any]:
    """Previews and truths at the weightings."""

    def ignore(step: int, metrics: Mapping[str, float]) -> None:
        pass

    return {
        "previews": [workbench.preview(weights).values for weights in weightings],
        "truths": [workbench.finetune(weights, ignore).values for weights in weightings],
    }


def main() -> None:
    """Measure both, compare, print and write."""
    torch.set_num_threads(1)
    tasks = list(load_tasks())
    draws = np.random.default_rng(0)
    weightings = [dict.fromkeys(tasks, 1 / 3)]
    weightings += [
        dict(zip(tasks, map(float, draws.dirichlet(np.ones(3))))) for _ in range(COUNT - 1)
    ]
    with tempfile.TemporaryDirectory() as name:
        own = om.fit(definition(), Path(name, "own"), progress=False)
        train = {task: Images(data["train"]) for task, data in load_tasks().items()}
        theirs = om.from_trainer(
            make_trainer,
            train,
            "eval_{task}_accuracy",
            Path(name, "trainer"),
            posterior=om.PosteriorSettings(examples=600),
            progress=False,
        )
        found = {"own": measured(own, weightings), "trainer": measured(theirs, weightings)}
        found["again"] = {
            "truths": [
                theirs.finetune(weights, lambda step, metrics: None, repeat=1).values
                for weights in weightings
            ]
        }
    compared = compare(found, tasks)
    for name, rows in compared.items():
        print(f"{name:34}" + "".join(f"  {column} {r:.3f}" for column, r in rows.items()))
    write_json(RESULTS, {"weightings": weightings, "compared": compared, **found})


def compare(found: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, dict[str, float]]:
    """Rank correlations of two lists of metrics and scores, and the mean difference of metrics.

    Where previews are compared with truths, uniform weights are left out: that truth makes them.
    """
    pairs = [
        ("truths", "own", "truths", "trainer"),
        ("truths", "trainer", "truths", "again"),
        ("previews", "own", "previews", "trainer"),
        ("previews", "own", "truths", "own"),
        ("previews", "trainer", "truths", "trainer"),
    ]
    compared: dict[str, dict[str, float]] = {}
    for what, kind, other_what, other in pairs:
        start = int(what != other_what)
        first, second = found[kind][what][start:], found[other][other_what][start:]
        rows = compared[f"{what} {kind}, {other_what} {other}"] = {}
        for column in (*tasks, "mean", "worst"):
            columns = [[_value(row, column) for row in each] for each in (first, second)]
            rows[column] = float(spearmanr(*columns).statistic)
        rows["difference"] = float(
            np.mean([abs(a[task] - b[task]) for a, b in zip(first, second) for task in tasks])
        )
    return compared


def _value(metrics: Mapping[str, float], column: str) -> float:
    if column == "mean":
        return float(np.mean(list(metrics.values())))
    return min(metrics.values()) if column == "worst" else metrics[column]


if __name__ == "__main__":
    main()
