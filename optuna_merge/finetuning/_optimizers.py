"""The optimizer of the training loop, made from the settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from optuna_merge.finetuning._settings import FinetuneSettings
from optuna_merge.models import MultitaskModel


def make_optimizer(
    model: MultitaskModel, names: Sequence[str], settings: FinetuneSettings
) -> tuple[Optimizer, list[str]]:
    """AdamW over the named parameters, and the names in its order."""
    parameters = dict(model.named_parameters())
    shared = set(model.shared_names())
    head_rate = settings.head_learning_rate or settings.learning_rate
    members: dict[tuple[float, float], list[str]] = {}
    for name in names:
        rate = settings.learning_rate if name in shared else head_rate
        decay = settings.weight_decay if parameters[name].ndim > 1 else 0.0
        members.setdefault((rate, decay), []).append(name)
    groups: list[dict[str, Any]] = [
        {"params": [parameters[n] for n in of], "lr": rate, "peak": rate, "weight_decay": decay}
        for (rate, decay), of in members.items()
    ]
    return torch.optim.AdamW(groups), [name for of in members.values() for name in of]
