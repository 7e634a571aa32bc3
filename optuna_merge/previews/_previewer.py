"""Merged parameters in one resident model, evaluated on every task's validation data."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optuna_merge._base.turns import models_turn
from optuna_merge.merging import merge, merge_into
from optuna_merge.models import MultitaskModel, evaluate_tasks, task_batches
from optuna_merge.posteriors import Posterior
from optuna_merge.previews._anchor import Anchor
from optuna_merge.previews._heads import HeadSolver, settled
from optuna_merge.previews._placement import place_posteriors
from optuna_merge.previews._settings import PreviewSettings
from optuna_merge.tasks import Evaluation, EvaluationBatches, Task


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

    The body (and shared heads) are merged, and every task has the head of its own run; the heads
    are then solved again for the body where `PreviewSettings.heads` says so. Everything happens on
    the model's device, where the posteriors are, too, if they take no more than a share of its
    free memory. Threads take turns.

    Args:
        model: The model that the merged parameters are put into.
        tasks: The model's tasks, in order.
        posteriors: Posterior of the shared parameters, by task.
        heads: Parameters of each task's own head, by task.
        batch_size: Examples a forward pass.
        limit: Only so many validation examples a task, the first ones; default all.
        settings: How the merged models are evaluated, and that share.
        states: By task, the trained parameters of its own run, which heads are solved again from;
            without them heads "auto" are merged.
        anchor: Corrects the merges between it and the task runs; None: they stay as they are.
        head_files: By task, a file that keeps what `HeadSolver` finds of the task's own run.

    Raises:
        ValueError: heads that can't be solved again; see `HeadSolver`.
    """

    @models_turn()
    def __init__(
        self,
        model: MultitaskModel,
        tasks: Sequence[Task],
        posteriors: Mapping[str, Posterior],
        heads: Mapping[str, Mapping[str, Tensor]],
        *,
        batch_size: int = 64,
        limit: int | None = None,
        settings: PreviewSettings | None = None,
        states: Mapping[str, Mapping[str, Tensor]] | None = None,
        anchor: Anchor | None = None,
        head_files: Mapping[str, Path] | None = None,
    ) -> None:
        self._model = model
        self._tasks = tuple(tasks)
        self._posteriors = {task.name: posteriors[task.name] for task in self._tasks}
        self._heads = {
            name: tensor for task in self._tasks for name, tensor in heads[task.name].items()
        }
        self._batch_size, self._limit = batch_size, limit
        settings = settings or PreviewSettings()
        if states is None and settings.heads == "auto":
            settings = replace(settings, heads="merged")
        self._settings = settled(settings, model, self._tasks)
        self._settled: torch.device | None = None
        self._batches: dict[str, EvaluationBatches] = {}
        self._placed: dict[str, Posterior] = {}
        self._solver: HeadSolver | None = None
        if self._settings.heads == "resolved":
            if states is None:
                raise ValueError("heads='resolved' needs the states of the task runs")
            self._solver = HeadSolver(
                model,
                tasks,
                states,
                examples=self._settings.head_examples,
                decay=self._settings.head_decay,
                batch_size=batch_size,
                files=head_files,
            )
        self._anchor = anchor

    def anchored(self, anchor: Anchor | None) -> Previewer:
        """The same previewer with another anchor, or without one."""
        other = copy.copy(self)
        other._anchor = anchor
        return other

    @models_turn()
    def merged(self, weights: Mapping[str, float]) -> dict[str, Tensor]:
        """All trained parameters of the preview: the merged ones and the tasks' heads.

        Where heads are solved again or an anchor corrects them, the model is changed on the way.
        """
        if self._solver is not None or self._anchor is not None:
            self.load(weights)
            return self._model.state()
        shared = merge(self._posteriors, [weights[task.name] for task in self._tasks])
        return shared | self._heads

    @models_turn()
    def load(self, weights: Mapping[str, float]) -> None:
        """Put `merged(weights)` into the model, in place."""
        self._settle()
        if self._solver is not None:
            with self.autocast():
                self._solver.prepare()
        share = 0.0
        if self._anchor is not None:
            self._settle_anchor(self._anchor)
            share = self._anchor.share([weights[task.name] for task in self._tasks])
        self._merge([weights[task.name] for task in self._tasks])
        if self._anchor is not None:
            self._anchor.correct(self._model, share)
        if self._solver is not None:
            with self.autocast():
                self._solver(weights)

    def _merge(self, weights: Sequence[float]) -> None:
        """The merge and the heads of the task runs into the model."""
        merge_into(self._model, self._placed, weights)
        # Other work may have been done with the model since: its heads are not a merge's.
        self._model.load(self._heads, source="the heads of the task runs")

    @models_turn()
    def release(self) -> None:
        """Take the posteriors off the model's device; the next preview puts them there again."""
        self._placed = {}
        if self._anchor is not None:
            self._anchor.release()

    def autocast(self) -> AbstractContextManager[Any]:
        """The context that forward passes of previews run in; see `PreviewSettings`."""
        return self._settings.autocast(self._model.device)

    @models_turn()
    def __call__(self, weights: Mapping[str, float]) -> Preview:
        """Preview the multitask model at `weights`, task weight by name, on the simplex."""
        started = time.perf_counter()
        self.load(weights)
        with self.autocast():
            evaluations = evaluate_tasks(self._model, self._tasks, self._batches)
        return Preview(dict(weights), evaluations, time.perf_counter() - started)

    def _settle_anchor(self, anchor: Anchor) -> None:
        """Measured once, and kept where the posteriors are."""
        if anchor.is_placed:
            return
        if not anchor.is_measured:
            self._merge([1 / len(self._tasks)] * len(self._tasks))
            # Heads that are solved again begin at those of the task runs.
            anchor.measure(self._model, () if self._solver is None else self._heads)
        device = self._model.device
        means = (posterior.mean for posterior in self._placed.values())
        if all(tensor.device == device for mean in means for tensor in mean.values()):
            anchor.place(device)

    def _settle(self) -> None:
        """Data and posteriors to where the model is, which may have been moved meanwhile."""
        device = self._model.device
        if self._settled != device:
            self._batches = task_batches(
                self._model, self._tasks, batch_size=self._batch_size, limit=self._limit
            )
            self.release()
            self._settled = device
        if not self._placed:
            share = self._settings.memory_share
            beside = 0 if self._anchor is None else self._anchor.bytes
            self._placed = place_posteriors(self._posteriors, device, share, beside=beside)
