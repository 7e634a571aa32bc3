"""The study of the workers that are killed: three orientations of the digits, a small perceptron.

A study's script, as those in `studies/`; its finetunes take a moment.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn

from optuna_merge import FinetuneSettings, PosteriorSettings, StudyDefinition, Task
from optuna_merge.cli import script
from optuna_merge.models import from_module
from studies.digits.data import load_tasks


def definition(steps: int = 60) -> StudyDefinition:
    """The tasks have one head."""
    tasks = [
        Task(name, data["train"], data["validation"], 10, test=data["test"], head="digits")
        for name, data in load_tasks().items()
    ]
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 32), nn.Tanh())
    return StudyDefinition(
        tasks=tasks,
        model=from_module(body, tasks, features=32, inputs=["pixel_values"]),
        finetuning=FinetuneSettings(
            steps=steps, batch_size=32, learning_rate=1e-2, evaluation_batch_size=300
        ),
        posterior=PosteriorSettings(family="diagonal", examples=100, chunk_size=50),
        score="worst",
    )


if __name__ == "__main__":
    script(definition, name="digits", n_trials=40)
