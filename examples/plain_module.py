"""Task weights for a plain `nn.Module` on tensors of your own; runs in seconds on a laptop.

    python examples/plain_module.py

Two regression tasks on the same inputs share a small network. Each has a head of its own.
"""

from __future__ import annotations

import tempfile

import torch
from torch import nn

import optuna_merge as om
from optuna_merge.models import from_module
from optuna_merge.tasks import mean_squared_error, negative_squared_error


def make_task(name: str, slope: float) -> om.Task:
    """A task is data, a loss and a metric; columns are tensors with one row per example."""
    x = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))
    y = torch.sin(slope * x[:, :1]) + 0.3 * x[:, 1:2] * x[:, 2:3]
    return om.Task(
        name,
        train={"x": x[:400], "labels": y[:400]},
        validation={"x": x[400:], "labels": y[400:]},
        num_outputs=1,
        loss=mean_squared_error,
        metrics=(negative_squared_error,),
    )


def main() -> None:
    """Fit each task once, preview many weights, finetune at the best few, print the table."""
    torch.manual_seed(0)
    tasks = [make_task("slow", 1.0), make_task("fast", 4.0)]
    body = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
    definition = om.StudyDefinition(
        tasks=tasks,
        model=from_module(body, tasks, features=32, inputs=["x"]),
        finetuning=om.FinetuneSettings(steps=200, learning_rate=5e-3),
        score="worst",
    )
    with tempfile.TemporaryDirectory() as workdir:
        fitted = om.fit(definition, workdir, progress=False)
        study = om.open_search(fitted, "plain", seed=0)  # in memory; "sqlite:///plain.db" keeps it
        study.optimize(om.Objective(fitted, progress=False), n_trials=25)
        print(om.format_report(om.make_report(study, fitted)))


if __name__ == "__main__":
    main()
