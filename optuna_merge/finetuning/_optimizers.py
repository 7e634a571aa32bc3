"""The optimizers of the training loop, made from the settings."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from optuna_merge.finetuning._ivon import IVON
from optuna_merge.finetuning._settings import FinetuneSettings
from optuna_merge.models import MultitaskModel

_logger = logging.getLogger(__name__)

_CONSTANT = 0.1
"""Relative standard deviation below which curvature is hardly better than none."""


def make_optimizer(
    model: MultitaskModel, names: Sequence[str], settings: FinetuneSettings, examples: int
) -> tuple[Optimizer, list[str]]:
    """AdamW or IVON over the named parameters, and the names in its order."""
    parameters = dict(model.named_parameters())
    shared = set(model.shared_names())
    head_rate = settings.head_learning_rate or settings.peak_rate
    members: dict[tuple[float, float], list[str]] = {}
    for name in names:
        rate = settings.peak_rate if name in shared else head_rate
        decay = settings.weight_decay if parameters[name].ndim > 1 else 0.0
        members.setdefault((rate, decay), []).append(name)
    groups: list[dict[str, Any]] = [
        {"params": [parameters[name] for name in names], "lr": rate, "peak": rate}
        for (rate, _), names in members.items()
    ]
    optimizer: Optimizer
    if settings.optimizer == "ivon":
        optimizer = IVON(
            groups,
            settings.peak_rate,
            ess=settings.ess or 100 * examples,
            delta=settings.delta,
            initial_h=settings.initial_h,
            betas=(0.9, max(0.0, 1 - 4 / settings.steps)),
        )
    else:
        decays = [decay for _, decay in members]
        optimizer = torch.optim.AdamW(
            [group | {"weight_decay": decay} for group, decay in zip(groups, decays)]
        )
    return optimizer, [name for names in members.values() for name in names]


def warn_if_constant(curvature: Mapping[str, Tensor]) -> None:
    """Log a warning if curvature differs so little between parameters that it weighs nothing."""
    values = torch.cat([tensor.flatten().double() for tensor in curvature.values()])
    spread = float(values.std(correction=0) / values.mean())
    if not spread >= _CONSTANT:
        _logger.warning(
            "the curvature of the run with IVON is almost the same for all %d parameters "
            "(relative standard deviation %.2g): merging by it is hardly more than averaging; "
            "train for more steps, or with another delta, initial_h or ess",
            len(values),
            spread,
        )
