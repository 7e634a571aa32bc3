"""Merged parameters in one resident model, evaluated on every task's validation data."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from optuna_merge.merging import merge, merge_into
from optuna_merge.models import MultitaskModel, evaluate_tasks, task_batches
from optuna_merge.posteriors import Posterior
from optuna_merge.tasks import Evaluation, Task


@dataclass(frozen=True)
class Preview:
    """Scores of the merge at some task weights.

    Attributes:
        weights: The task weights.
        evaluations: Loss and metrics of every task, with standard errors.
        seconds: Time for merge and evaluation together.
    """

    weights: dict[str, float]
    evaluations: dict[str, Evaluation]
    seconds: float


class Previewer:
    """Merges the tasks' posteriors at given weights and evaluates the merged model.

    The body (and shared heads) are merged; every task keeps the head of its own run.

    Args:
        model: The model that the merged parameters are put into.
        tasks: The model's tasks, in order.
        posteriors: Posterior of the shared parameters, by task.
        heads: Parameters of each task's own head, by task.
        batch_size: Examples a forward pass.
        limit: Only so many validation examples a task, the first ones; default all.
    """

    def __init__(
        self,
        model: MultitaskModel,
        tasks: Sequence[Task],
        posteriors: Mapping[str, Posterior],
        heads: Mapping[str, Mapping[str, Tensor]],
        *,
        batch_size: int = 64,
        limit: int | None = None,
    ) -> None:
        self._model = model
        self._tasks = tuple(tasks)
        self._posteriors = {task.name: posteriors[task.name] for task in self._tasks}
        self._heads = {
            name: tensor for task in self._tasks for name, tensor in heads[task.name].items()
        }
        self._batches = task_batches(model, tasks, batch_size=batch_size, limit=limit)

    def merged(self, weights: Mapping[str, float]) -> dict[str, Tensor]:
        """All trained parameters of the preview: the merged ones and the tasks' heads."""
        shared = merge(self._posteriors, [weights[task.name] for task in self._tasks])
        return shared | self._heads

    def load(self, weights: Mapping[str, float]) -> None:
        """Put `merged(weights)` into the model, in place.

        Args:
            weights: Task weight by name, on the simplex.
        """
        merge_into(self._model, self._posteriors, [weights[task.name] for task in self._tasks])
        # Other work may have been done with the model since: its heads are not a merge's.
        self._model.load(self._heads, source="the heads of the task runs")

    def __call__(self, weights: Mapping[str, float]) -> Preview:
        """Preview the multitask model at `weights`, task weight by name, on the simplex."""
        started = time.perf_counter()
        self.load(weights)
        evaluations = evaluate_tasks(self._model, self._tasks, self._batches)
        return Preview(dict(weights), evaluations, time.perf_counter() - started)
