"""Multitask models around any `nn.Module`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from optuna_merge.models._multitask import BatchNorm, MultitaskModel, fresh_heads
from optuna_merge.models._trainable import Trainable
from optuna_merge.tasks import Task


class BodyAndHead(nn.Module):
    """A head on the features of a body."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.head(self.body(*inputs))  # type: ignore[no-any-return]


def from_module(
    body: nn.Module,
    tasks: Sequence[Task],
    *,
    features: int | None = None,
    heads: Mapping[str, nn.Module] | None = None,
    inputs: Sequence[str] = ("pixel_values",),
    trainable: Trainable = "all",
    batch_norm: BatchNorm = "pretrained",
    batch_norm_examples: int = 512,
    seed: int = 0,
) -> MultitaskModel:
    """A multitask model around a body that maps inputs to features.

    Args:
        body: Called with the batch's `inputs` by position; gives features (batch, features).
        tasks: The tasks.
        features: Size of the features; linear heads are then made for the tasks.
        heads: Or modules of your own from features to outputs, by head name.
        inputs: Columns of the batch that the body takes.
        trainable: Which of the body's parameters are trained and merged.
        batch_norm: Where statistics of trained batch norms come from; see `MultitaskModel`.
        batch_norm_examples: Training examples of a task that they are re-estimated on.
        seed: Seed of the linear heads' initial values.

    Raises:
        ValueError: neither or both of `features` and `heads`, or as `MultitaskModel` raises.
    """
    if (features is None) == (heads is None):
        raise ValueError("give either features=, for linear heads, or heads=, modules of your own")
    if heads is None:
        assert features is not None
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            heads = {name: nn.Linear(features, size) for name, size in fresh_heads(tasks).items()}
    networks = {name: BodyAndHead(body, head) for name, head in heads.items()}
    return MultitaskModel(
        body,
        networks,
        tasks,
        inputs=inputs,
        trainable=trainable,
        batch_norm=batch_norm,
        batch_norm_examples=batch_norm_examples,
    )
