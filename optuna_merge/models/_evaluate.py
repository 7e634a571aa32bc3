"""A multitask model on all its tasks' data."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from optuna_merge.models._multitask import MultitaskModel
from optuna_merge.tasks import Evaluation, Task, evaluate


def evaluate_tasks(
    model: MultitaskModel,
    tasks: Sequence[Task],
    *,
    split: str = "validation",
    batch_size: int = 64,
    limit: int | None = None,
) -> dict[str, Evaluation]:
    """Loss and metrics of every task, each with its own head; leaves the model in evaluation mode.

    Args:
        model: The model.
        tasks: The model's tasks, or some of them.
        split: "train", "validation" or "test".
        batch_size: Examples a forward pass.
        limit: Only so many examples a task, the first ones; default all.
    """
    model.eval()
    evaluations = {}
    for task in tasks:
        size = len(task.data(split))
        evaluations[task.name] = evaluate(
            partial(model, task=task.name),
            task,
            split=split,
            batch_size=batch_size,
            device=model.device,
            indices=None if limit is None else range(min(limit, size)),
        )
    return evaluations
