"""Four tasks on scikit-learn's digits, two of which disagree on the labels of some.

    python studies/conflict/optimize.py --n-trials 40

The flags are those of every study: --study-name --storage --n-trials --timeout --workdir. The
body is a perceptron, so that a finetune takes half a second; it is pretrained as the digits study
pretrains its own, on upright digits under noise.
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
from studies.conflict.data import load_tasks
from studies.digits.optimize import HEAD, pretrain
from studies.fetch import default_cache

WIDTH = 128


def definition() -> StudyDefinition:
    """Find task weights for plain, swapped, rotated and mirrored digits on a small perceptron."""
    tasks = [
        Task(name, data["train"], data["validation"], 10, test=data["test"], head=HEAD)
        for name, data in load_tasks().items()
    ]
    body, head = fresh_perceptron()
    pretrain(body, head, default_cache())
    return StudyDefinition(
        tasks=tasks,
        model=from_module(body, tasks, heads={HEAD: head}),
        finetuning=FinetuneSettings(
            steps=81,
            batch_size=32,
            learning_rate=3e-3,
            rung_steps=(9, 27, 81),
            evaluation_batch_size=300,
        ),
        posterior=PosteriorSettings(family="diagonal", examples=600, chunk_size=100),
        score="worst",
    )


def fresh_perceptron() -> tuple[nn.Module, nn.Module]:
    """Two hidden layers and a classifier, always with the same initial values."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, WIDTH),
            nn.GELU(),
            nn.Linear(WIDTH, WIDTH),
            nn.GELU(),
        )
        return body, nn.Linear(WIDTH, 10)


if __name__ == "__main__":
    script(definition, name="conflict", n_trials=40)
