"""Drawn labels against sums over all labels: error of the curvature at equal cost.

    python studies/digits/exact_labels.py

The upright digits are grouped into 2, 3, 5 and 10 classes. For each, a task run of 60 steps; then
the diagonal from `GRADIENTS` example gradients is compared to the exact one of all 600 training
examples: spent on that many examples with one drawn label each, or on fewer examples with all
their labels. Error: norm of the difference to the norm of the exact diagonal, mean and standard
deviation over `REPEATS` seeds of examples and labels. Writes results/exact_labels.json.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from optuna_merge import Task
from optuna_merge._files import write_json
from optuna_merge.finetuning import finetune
from optuna_merge.models import MultitaskModel, from_module
from optuna_merge.posteriors import categorical_labels, squared_gradients
from optuna_merge.tasks import cross_entropy
from studies.digits.data import load_tasks
from studies.digits.optimize import definition

GRADIENTS = (60, 120, 300)
REPEATS = 20


def grouped(classes: int) -> Task:
    """The upright digits in so many groups of neighbouring digits, with a head of their own."""
    splits = {
        name: {**columns, "labels": columns["labels"] * classes // 10}
        for name, columns in load_tasks()["upright"].items()
    }
    return Task("upright", splits["train"], splits["validation"], classes)


def diagonal(
    model: MultitaskModel, rows: Mapping[str, Tensor], classes: int | None, seed: int = 0
) -> Tensor:
    """All numbers of the estimate: labels summed over where `classes` are given, else drawn."""
    found = squared_gradients(
        lambda parameters, batch: model.functional(parameters, batch, "upright"),
        model.state(model.shared_names()),
        [rows],
        loss=cross_entropy,
        sample_labels=None if classes else categorical_labels,
        classes=classes,
        chunk_size=100,
        generator=torch.Generator().manual_seed(seed),
    )
    return torch.cat([tensor.flatten() for tensor in found.values()]).double()


def measure(classes: int) -> dict[str, list[float]]:
    """Errors of both ways: mean and standard deviation by number of gradients."""
    study = definition()
    task = grouped(classes)
    model = from_module(study.model.body, [task], features=32)
    settings = replace(study.finetuning, num_rungs=1)
    finetune(model, [task], {"upright": 1.0}, settings)
    data = task.data("train")[list(range(600))]
    exact = diagonal(model, data, classes)
    errors: dict[str, list[float]] = {}
    for gradients in GRADIENTS:
        for way, count in (("drawn", gradients), ("summed", gradients // classes)):
            found = []
            for seed in range(REPEATS):
                order = torch.randperm(600, generator=torch.Generator().manual_seed(seed))
                rows = {name: column[order[:count]] for name, column in data.items()}
                estimate = diagonal(model, rows, classes if way == "summed" else None, seed)
                found.append(float((estimate - exact).norm() / exact.norm()))
            errors[f"{way}, {gradients} gradients"] = [mean(found), stdev(found)]
    return errors


if __name__ == "__main__":
    results = {str(classes): measure(classes) for classes in (2, 3, 5, 10)}
    for classes, errors in results.items():
        for name, (middle, spread) in errors.items():
            print(f"{classes:>2} classes, {name}: error {middle:.2f} +- {spread:.2f}")
    write_json(Path(__file__).parent / "results" / "exact_labels.json", results)
