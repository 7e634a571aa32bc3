"""Who looks on while a model is finetuned: progress bars, TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from optuna_merge.tasks import Evaluation


@dataclass(frozen=True)
class RunInfo:
    """A finetune that begins, or continues from a checkpoint.

    Attributes:
        title: What it is called in progress bars; None: it was asked to be quiet.
        weights: Task weight by name.
        steps: Steps in all.
        done: Steps that are done already.
    """

    title: str | None
    weights: Mapping[str, float]
    steps: int
    done: int


class Watcher:
    """Base class of watchers, which follow every finetune within `watched_by`; it does nothing.

    Finetunes come one after the other. Runs that are found finished are not trained, and not told
    of. What a watcher raises ends the finetune.
    """

    shows_progress = False
    """Whether it is a progress bar, so that no other is needed."""

    def started(self, run: RunInfo) -> None:
        """A finetune begins."""

    def stepped(self, step: int, loss: Tensor) -> None:
        """A step is done, the first one has number 1; the weighted loss is on the device."""

    def evaluated(self, step: int, evaluations: Mapping[str, Evaluation]) -> None:
        """All tasks were evaluated on validation data after this step."""

    def ended(self) -> None:
        """The finetune is over, or was broken off."""


_ACTIVE: ContextVar[tuple[Watcher, ...]] = ContextVar("watchers", default=())


@contextmanager
def watched_by(*watchers: Watcher) -> Iterator[None]:
    """Within this block all finetunes of this thread are watched: task runs and truths alike."""
    token = _ACTIVE.set((*_ACTIVE.get(), *watchers))
    try:
        yield
    finally:
        _ACTIVE.reset(token)


class TrainingBar(Watcher):
    """A progress bar in the terminal, for who has none of their own."""

    shows_progress = True

    def __init__(self) -> None:
        self._bar: Any = None

    def started(self, run: RunInfo) -> None:
        self._bar = tqdm(total=run.steps, initial=run.done, desc=run.title, leave=False)

    def stepped(self, step: int, loss: Tensor) -> None:
        self._bar.update()

    def ended(self) -> None:
        self._bar.close()


@contextmanager
def told(run: RunInfo) -> Iterator[tuple[Watcher, ...]]:
    """Tell the watchers of a run's start and end; yield them."""
    watchers = _ACTIVE.get()
    if run.title is not None and not any(watcher.shows_progress for watcher in watchers):
        watchers = (*watchers, TrainingBar())
    for watcher in watchers:
        watcher.started(run)
    try:
        yield watchers
    finally:
        for watcher in watchers:
            watcher.ended()


class TensorBoard(Watcher):
    """Writes the weighted training loss, and each task's validation loss and metrics.

    Every finetune has a folder of its own below `folder`, named by its task weights; one that goes
    on from a checkpoint goes on there. The training loss is written `every` so many steps.
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
