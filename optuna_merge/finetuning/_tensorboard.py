"""Learning curves of finetunes for TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from optuna_merge.finetuning._watchers import RunInfo, Watcher
from optuna_merge.tasks import Evaluation


class TensorBoard(Watcher):
    """Writes the weighted training loss, and each task's validation loss and metrics.

    Every finetune has a folder of its own, named by its task weights; one that goes on from a
    checkpoint goes on there.

    Args:
        folder: What `tensorboard --logdir` is given.
        every: Steps between two values of the training loss.

    Raises:
        ImportError: TensorBoard isn't installed.
    """

    def __init__(self, folder: str | os.PathLike[str], *, every: int = 10) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "learning curves need TensorBoard: pip install tensorboard"
            ) from error
        self._make: Any = SummaryWriter
        self._folder = Path(folder)
        self._every = every
        self._writer: Any = None

    def started(self, run: RunInfo) -> None:
        parts = [f"{name}={weight:.4g}" for name, weight in run.weights.items() if weight > 0]
        self._writer = self._make(str(self._folder / ",".join(parts)))

    def stepped(self, step: int, loss: Tensor) -> None:
        if step % self._every == 0:
            self._writer.add_scalar("train/loss", loss.item(), step)

    def evaluated(self, step: int, evaluations: Mapping[str, Evaluation]) -> None:
        for task, evaluation in evaluations.items():
            self._writer.add_scalar(f"{task}/loss", evaluation.loss.value, step)
            for name, metric in evaluation.metrics.items():
                self._writer.add_scalar(f"{task}/{name}", metric.value, step)

    def ended(self) -> None:
        self._writer.close()
