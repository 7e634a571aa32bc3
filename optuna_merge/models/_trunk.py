"""The frozen trunk computed once: its output becomes a column of the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn

from optuna_merge._base.files import sha256_text
from optuna_merge._base.swapped import swapped
from optuna_merge._base.tensors import load_sound, load_tensors, save_tensors
from optuna_merge.models._multitask import TRUNK, MultitaskModel
from optuna_merge.models._trainable import LastLayers, find_layers
from optuna_merge.tasks import (
    DECODER,
    MASK,
    SPLITS,
    Batch,
    Task,
    TensorData,
    batches_in_order,
    fingerprint,
    to_device,
)


def cache_trunk(
    model: MultitaskModel,
    tasks: Sequence[Task],
    *,
    batch_size: int = 64,
    max_bytes: int = 4 << 30,
    folder: Path | None = None,
) -> tuple[Task, ...]:
    """Run the layers below the trained ones once, over all data; give tasks that start from there.

    Exact, because frozen modules stay in evaluation mode. Applies when the model trains
    `LastLayers` and all data are held in memory; otherwise, or when the activations would take
    more than `max_bytes`, the tasks come back as they were.

    Args:
        model: The model; afterwards it takes both the old tasks' data and the new ones'.
        tasks: The model's tasks.
        batch_size: Examples a forward pass.
        max_bytes: Most memory to spend on activations.
        folder: Where to keep them, one file per data set under the hash of it and of what its task
            uses of the model: other processes and later ones map these files into memory. None:
            in this process only.
    """
    tasks = tuple(tasks)
    splits = [
        (task, split, data)
        for task in tasks
        for split in SPLITS
        if (data := getattr(task, split)) is not None
    ]
    if not isinstance(model.trainable, LastLayers):
        return tasks
    layers = list(find_layers(model.body)[1].children())
    first = len(layers) - model.trainable.count
    if not 0 < first < len(layers):
        return tasks
    if not all(isinstance(data, TensorData) and TRUNK not in data.columns for *_, data in splits):
        return tasks
    if any(DECODER in data.columns for *_, data in splits):  # positions of two kinds
        return tasks
    trunk = _Trunk(layers[:first], layers[first])
    needed = 0
    for task, _, data in splits:
        row = trunk.output(model, task, to_device(data[[0]], model.device))
        tokens = data.columns[MASK].shape[1] if MASK in data.columns else row.shape[1]
        needed += len(data) * tokens * row[0, 0].numel() * row.element_size()
    if needed > max_bytes or not trunk.skippable:
        return tasks
    used = {} if folder is None else model.describe_tasks()
    columns: dict[str, dict[str, Any]] = {task.name: {} for task in tasks}
    for task, split, data in splits:

        def compute(task: Task = task, data: TensorData = data) -> Tensor:
            return trunk.activations(model, task, data, batch_size)

        if folder is None:
            column = compute()
        else:
            key = sha256_text(f"{used[task.name]['hash']} {first} {fingerprint(data)}")[:24]
            column = _kept(folder / f"{key}.safetensors", compute)
        columns[task.name][split] = data.with_column(TRUNK, column)
    model.replaying = trunk.replaying
    return tuple(dataclasses.replace(task, **columns[task.name]) for task in tasks)


def _kept(path: Path, compute: Callable[[], Tensor]) -> Tensor:
    """The tensor in the file, mapped into memory; computed and written if it isn't there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if (found := load_sound(path, load_tensors)) is None:
            save_tensors({TRUNK: compute()}, path)
            found = load_tensors(path)
        return found[0][TRUNK]


class _Reached(Exception):
    """The first trained layer was given its input: what comes behind it need not be computed."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__("the first trained layer is reached")
        self.hidden = hidden


class _Trunk:
    """Frozen layers that can be skipped, their output put in at the first trained layer."""

    def __init__(self, frozen: Sequence[nn.Module], boundary: nn.Module) -> None:
        self._activations: Tensor | None = None
        self._ends_at_boundary = False
        self.skippable = True  # not where layers give more than their successor's input
        for layer in frozen:
            layer.forward = partial(self._frozen, layer.forward)
        boundary.forward = partial(self._boundary, boundary.forward)

    def replaying(self, activations: Tensor) -> AbstractContextManager[None]:
        """Within it the frozen layers do nothing and the boundary sees `activations`."""
        return swapped(self, "_activations", activations)

    def output(self, model: MultitaskModel, task: Task, batch: Batch) -> Tensor:
        """What the first trained layer is given for the batch."""
        try:
            with torch.inference_mode(), swapped(self, "_ends_at_boundary", True):
                model(batch, task.name)
        except _Reached as reached:
            return reached.hidden
        raise AssertionError("the model does not call its first trained layer")

    def activations(
        self, model: MultitaskModel, task: Task, data: TensorData, batch_size: int
    ) -> Tensor:
        """The trunk's output on all data, padded with zeros."""
        column: Tensor | None = None
        for rows in batches_in_order(data, batch_size):
            output = self.output(model, task, to_device(data[rows], model.device)).cpu()
            if column is None:
                length = data.columns[MASK].shape[1] if MASK in data.columns else output.shape[1]
                column = torch.zeros(len(data), length, *output.shape[2:], dtype=output.dtype)
            column[rows, : output.shape[1]] = output
        assert column is not None
        return column

    def _frozen(self, forward: Callable[..., Any], hidden: Tensor, *rest: Any, **more: Any) -> Any:
        if self._activations is not None:
            return hidden
        output = forward(hidden, *rest, **more)
        self.skippable &= isinstance(output, Tensor)
        return output

    def _boundary(
        self, forward: Callable[..., Any], hidden: Tensor, *rest: Any, **more: Any
    ) -> Any:
        if self._ends_at_boundary:
            raise _Reached(hidden.detach())
        if self._activations is None:
            return forward(hidden, *rest, **more)
        return forward(self._activations, *rest, **more)
