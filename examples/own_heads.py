"""Tasks with heads, losses and metrics of their own: a classification and a regression.

    python examples/own_heads.py

The body is merged. A task's own head is never merged: it comes from the task's own run, and is
solved again for each merge where that is possible.
"""

from __future__ import annotations

import torch
from tiny import run
from torch import nn

import optuna_merge as om
from optuna_merge.models import from_module
from optuna_merge.tasks import macro_f1, mean_squared_error, pearson


def make_tasks() -> list[om.Task]:
    """Points of four coordinates: in which quadrant are they, and how high is the land there?"""
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    quadrant = (x[:, 0] > 0).long() * 2 + (x[:, 1] > 0).long()
    height = x[:, 2:3] - torch.sin(2 * x[:, 0:1])
    parts = {"train": slice(0, 300), "validation": slice(300, 400), "test": slice(400, 500)}
    return [
        om.Task(
            "quadrant",
            **{split: {"x": x[rows], "labels": quadrant[rows]} for split, rows in parts.items()},
            num_outputs=4,
            metrics=(macro_f1,),  # the default loss is cross-entropy
            label_names=("south-west", "north-west", "south-east", "north-east"),
        ),
        om.Task(
            "height",
            **{split: {"x": x[rows], "labels": height[rows]} for split, rows in parts.items()},
            num_outputs=1,
            loss=mean_squared_error,
            metrics=(pearson,),
        ),
    ]


def main() -> None:
    """Heads may be any module from the body's features to the outputs."""
    torch.manual_seed(0)
    tasks = make_tasks()
    body = nn.Sequential(nn.Linear(4, 24), nn.Tanh(), nn.Linear(24, 16), nn.Tanh())
    heads = {
        "quadrant": nn.Linear(16, 4),
        "height": nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1)),
    }
    definition = om.StudyDefinition(
        tasks=tasks,
        model=from_module(body, tasks, heads=heads, inputs=["x"]),
        finetuning=om.FinetuneSettings(steps=120, learning_rate=1e-2, head_learning_rate=2e-2),
        score="relative",  # each metric by what its task reaches alone: two units, one score
    )
    run(definition, n_trials=12)


if __name__ == "__main__":
    main()
