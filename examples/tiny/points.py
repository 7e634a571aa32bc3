"""A small study of points in a plane of six dimensions: two tasks with heads of their own."""

from __future__ import annotations

import torch
from torch import nn

import optuna_merge as om
from optuna_merge.models import from_module


def point_task(name: str, seed: int) -> om.Task:
    """Three classes of points: the largest of three linear functions."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(500, 6, generator=generator)
    labels = (x @ torch.randn(6, 3, generator=generator)).argmax(1)
    train, rest = {"x": x[:300], "labels": labels[:300]}, {"x": x[300:], "labels": labels[300:]}
    return om.Task(name, train, rest, num_outputs=3)


def point_study() -> om.StudyDefinition:
    """Fitted in a moment."""
    torch.manual_seed(0)
    tasks = [point_task("red", 1), point_task("blue", 2)]
    body = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
    return om.StudyDefinition(
        tasks=tasks,
        model=from_module(body, tasks, features=16, inputs=["x"]),
        finetuning=om.FinetuneSettings(steps=60, learning_rate=5e-3),
    )
