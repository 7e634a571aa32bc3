"""Multitask models around timm's vision models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from optuna_merge._base.lazy import need
from optuna_merge.models._module import from_module
from optuna_merge.models._multitask import BatchNorm, MultitaskModel
from optuna_merge.models._trainable import Trainable
from optuna_merge.tasks import Task, own_draws


def timm_body(name: str, *, pretrained: bool, seed: int = 0) -> Any:
    """A timm model without its classifier; without pretrained weights the seed alone makes it."""
    need("timm", "images", "a model of images")
    import timm

    try:
        with own_draws(torch.device("cpu"), seed):
            return timm.create_model(name, pretrained=pretrained, num_classes=0)
    except (RuntimeError, ValueError) as error:
        reason = str(error)
        if not reason.startswith(("Unknown model", "Model name")):
            raise
        if Path(name).is_dir():
            told = f"it is a folder, which is written 'local-dir:{name}'"
        else:
            told = "nor is there such a folder; timm.list_models('*vit*') lists names"
        raise ValueError(f"timm knows no model {name!r}: {told}") from error


def from_timm(
    model: str | nn.Module,
    tasks: Sequence[Task],
    *,
    pretrained: bool = True,
    trainable: Trainable = "all",
    batch_norm: BatchNorm = "pretrained",
    batch_norm_examples: int = 512,
    seed: int = 0,
) -> MultitaskModel:
    """A multitask model around a timm model, with linear heads on its pooled features.

    Args:
        model: A name that `timm.create_model` knows, or a timm model (its classifier is removed).
        tasks: Tasks with a column `pixel_values` (batch, channels, height, width).
        pretrained: Load timm's pretrained weights, when a name is given.
        trainable: Which of the body's parameters are trained and merged.
        batch_norm: Where statistics of trained batch norms come from; see `MultitaskModel`.
        batch_norm_examples: Training examples of a task that they are re-estimated on.
        seed: Seed of the heads' initial values, and of a body's that isn't pretrained.

    Raises:
        ValueError: timm knows no such model.
    """
    if isinstance(model, str):
        body: Any = timm_body(model, pretrained=pretrained, seed=seed)
    else:
        body = model
        body.reset_classifier(0)
    return from_module(
        body,
        tasks,
        features=body.num_features,
        trainable=trainable,
        batch_norm=batch_norm,
        batch_norm_examples=batch_norm_examples,
        seed=seed,
    )
