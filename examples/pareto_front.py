"""One objective per task, under constraints: the Pareto front of real finetunes.

python examples/pareto_front.py
"""

from __future__ import annotations

import torch
from tiny import run
from torch import nn

import optuna_merge as om
from optuna_merge.models import from_module


def make_task(name: str, angle: float) -> om.Task:
    """Which side of a line are points on? The tasks' lines differ, and the head is one."""
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    line = torch.tensor([torch.cos(torch.tensor(angle)), torch.sin(torch.tensor(angle))])
    labels = (x @ line > 0).long()
    return om.Task(
        name,
        train={"x": x[:300], "labels": labels[:300]},
        validation={"x": x[300:], "labels": labels[300:]},
        num_outputs=2,
        head="side",
    )


def main() -> None:
    """What is gained on one task is lost on the other: how much, the front tells."""
    torch.manual_seed(0)
    tasks = [make_task("here", 0.0), make_task("there", 1.0)]
    body = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
    definition = om.StudyDefinition(
        tasks=tasks,
        model=from_module(body, tasks, features=16, inputs=["x"]),
        finetuning=om.FinetuneSettings(steps=80, learning_rate=5e-3),
        score="pareto",
        # No task below 75 % of what it reaches alone, and one not below a number of its own.
        constraints=[om.Constraint("here", of_alone=0.75), om.Constraint("there", at_least=0.7)],
    )
    run(definition, n_trials=14, fraction=0.4)


if __name__ == "__main__":
    main()
