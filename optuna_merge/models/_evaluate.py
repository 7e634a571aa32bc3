"""A multitask model on all its tasks' data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch

from optuna_merge.models._multitask import MultitaskModel
from optuna_merge.tasks import Batch, Evaluation, EvaluationBatches, Task, evaluate


def evaluate_tasks(
    model: MultitaskModel,
    tasks: Sequence[Task],
    batches: Mapping[str, Iterable[Batch]],
    split: str = "validation",
) -> dict[str, Evaluation]:
    """Loss and metrics of every task, each with its own head; leaves the model in evaluation mode.

    Args:
        model: The model, which is prepared for each task first.
        tasks: The model's tasks, or some of them.
        batches: Each task's data, such as `task_batches` makes them.
        split: Which data these are; for metrics of whole models, which have data of their own.
    """
    found = {}
    for task in tasks:
        model.prepare(task)
        found[task.name] = evaluate(
            partial(model, task=task.name),
            task,
            batches[task.name],
            generate=partial(model.generate, task=task.name),
            measure=partial(model.measure, task=task.name, split=split),
        )
    return found


def task_batches(
    model: MultitaskModel,
    tasks: Sequence[Task],
    split: str = "validation",
    *,
    batch_size: int = 64,
    limit: int | None = None,
    device: torch.device | None = None,
) -> dict[str, EvaluationBatches]:
    """Every task's data in batches, on the model's device by default; see `EvaluationBatches`."""
    device = model.device if device is None else device
    return {
        task.name: EvaluationBatches(
            task, split, batch_size=batch_size, device=device, limit=limit
        )
        for task in tasks
    }
