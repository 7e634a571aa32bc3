"""Merged parameters in one resident model, evaluated on every task's validation data."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from optuna_merge.merging import merge
from optuna_merge.models import MultitaskModel, evaluate_tasks
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
    """

    def __init__(
        self,
        model: MultitaskModel,
        tasks: Sequence[Task],
        posteriors: Mapping[str, Posterior],
        heads: Mapping[str, Mapping[str, Tensor]],
        *,
        batch_size: int = 64,
    ) -> None:
        self._model = model
        self._tasks = tuple(tasks)
        self._posteriors = {task.name: posteriors[task.name] for task in self._tasks}
        self._heads = {
            name: tensor for task in self._tasks for name, tensor in heads[task.name].items()
        }
        self._batch_size = batch_size

    def merged(self, weights: Mapping[str, float]) -> dict[str, Tensor]:
        """All trained parameters of the preview: the merged ones and the tasks' heads."""
        shared = merge(self._posteriors, [weights[task.name] for task in self._tasks])
        return shared | self._heads

    def __call__(
        self, weights: Mapping[str, float], *, split: str = "validation", limit: int | None = None
    ) -> Preview:
        """Preview the multitask model at `weights`.

        Args:
            weights: Task weight by name, on the simplex.
            split: The data to evaluate on.
            limit: Only so many examples a task, the first ones.
        """
        started = time.perf_counter()
        self._model.load(self.merged(weights), source="the merge")
        evaluations = evaluate_tasks(
            self._model, self._tasks, split=split, batch_size=self._batch_size, limit=limit
        )
        return Preview(dict(weights), evaluations, time.perf_counter() - started)
