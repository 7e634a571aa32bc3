"""Refined previews: a few weighted training steps from a merge, between it and a real finetune."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from optuna_merge._turns import models_turn
from optuna_merge.finetuning import FinetuneSettings, FinetuneStore, FinishedRun, Start
from optuna_merge.finetuning._loop import OnRung
from optuna_merge.models import MultitaskModel
from optuna_merge.previews._previewer import Preview, Previewer
from optuna_merge.tasks import Evaluation, Task

_logger = logging.getLogger(__name__)

Merge = Callable[[Mapping[str, float]], Start]
"""Task weights to the start of a finetune at their merge."""


@dataclass(frozen=True)
class RefinementSettings:
    """How previews are refined.

    From the merged parameters and the tasks' own heads the model is trained by AdamW at a constant
    rate, with fresh moments, on the weighted loss; after each rung it is evaluated again. A tenth
    to a fifth of a finetune's steps make a preview much truer than the same steps from the
    pretrained body do (studies/README.md); beyond two fifths a refined model may be better than
    the finetune that it previews.

    Attributes:
        steps: Training steps from the merge at each rung, rising.
        batch_size: Examples of each task in a step; default: the finetune's. At the same number
            of examples more steps are better than larger batches.
        learning_rates: Multiples of the finetune's learning rates (where that is not by AdamW, of
            AdamW's default). Of several, `fit` takes the one
            whose refinement at uniform weights has the lowest weighted loss on validation data:
            too large a rate makes a refinement worse than the merge.
    """

    steps: tuple[int, ...]
    batch_size: int | None = None
    learning_rates: tuple[float, ...] = (0.3, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        object.__setattr__(self, "learning_rates", tuple(self.learning_rates))
        if not self.steps or not all(a < b for a, b in pairwise((0, *self.steps))):
            raise ValueError(f"steps must be positive and rise, got {self.steps}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if not self.learning_rates or not all(rate > 0 for rate in self.learning_rates):
            raise ValueError(
                f"learning_rates must be positive multiples of the finetune's, got "
                f"{self.learning_rates}"
            )

    def training(self, finetuning: FinetuneSettings, multiple: float) -> FinetuneSettings:
        """The settings of a refinement at a multiple of a finetune's learning rates."""
        adamw = finetuning
        if finetuning.optimizer != "adamw":  # its rates are in other units
            adamw = replace(
                finetuning, optimizer="adamw", learning_rate=None, head_learning_rate=None
            )
        head = adamw.head_learning_rate
        return replace(
            adamw,
            steps=self.steps[-1],
            rung_steps=self.steps,
            batch_size=self.batch_size or finetuning.batch_size,
            learning_rate=multiple * adamw.peak_rate,
            head_learning_rate=None if head is None else multiple * head,
            warmup=0.0,
            decay="constant",
        )

    def describe(self) -> dict[str, Any]:
        """As JSON values, for the study's definition."""
        return asdict(self)


@dataclass(frozen=True)
class Choice:
    """The learning rate of refinements.

    Attributes:
        multiple: Of the finetune's rates.
        losses: Weighted validation loss at uniform weights by multiple; empty if it was given.
        runs: The refinements that it was chosen from.
    """

    multiple: float
    losses: dict[float, float]
    runs: tuple[FinishedRun, ...]


class Refiner:
    """Refines the merge at given task weights, rung by rung.

    Runs are kept in the store: one that was stopped at a rung goes on from there, whichever
    process asks for it.

    Args:
        previewer: Gives the merges.
        model: The model that is trained.
        tasks: The model's tasks, in order.
        store: Where runs are kept.
        start: Gives the merge at some weights as the start of a finetune.
        settings: What `RefinementSettings.training` gives.
    """

    def __init__(
        self,
        previewer: Previewer,
        model: MultitaskModel,
        tasks: Sequence[Task],
        store: FinetuneStore,
        start: Merge,
        settings: FinetuneSettings,
    ) -> None:
        self._previewer = previewer
        self._model = model
        self._tasks = tuple(tasks)
        self._store = store
        self._start = start
        self.settings = settings

    @models_turn()
    def __call__(
        self,
        weights: Mapping[str, float],
        *,
        preview: Preview | None = None,
        on_rung: OnRung | None = None,
        progress: str | None = None,
    ) -> FinishedRun:
        """Train from the merge at `weights`; see `finetune` for the other arguments and errors.

        `preview` is the merge's own, where it is known; else it is made.

        `on_rung` is given the evaluations with the lowest weighted loss so far, the merge's own
        among them: a rung that does not lower the loss is thrown away.
        """
        best = (preview or self._previewer(weights)).evaluations
        self._previewer.release()  # training needs the device's memory

        def keep(step: int, evaluations: dict[str, Evaluation]) -> None:
            nonlocal best
            best = min(best, evaluations, key=lambda found: weighted_loss(weights, found))
            if on_rung is not None:
                on_rung(step, best)

        return self._store.run(
            self._model,
            self._tasks,
            weights,
            self.settings,
            start=self._start(weights),
            on_rung=keep,
            progress=progress,
        )


def weighted_loss(weights: Mapping[str, float], evaluations: Mapping[str, Evaluation]) -> float:
    """`sum_t a_t loss_t`, infinite where it is not a number."""
    total = sum(a * evaluations[task].loss.value for task, a in weights.items() if a)
    return total if total == total else float("inf")


def choose_rate(
    refinement: RefinementSettings,
    finetuning: FinetuneSettings,
    previewer: Previewer,
    model: MultitaskModel,
    tasks: Sequence[Task],
    store: FinetuneStore,
    start: Merge,
    *,
    progress: bool = False,
) -> Choice:
    """The learning rate whose refinement at uniform weights has the lowest weighted loss.

    Arguments are those of `Refiner`; of equal losses the smaller rate is taken.
    """
    if len(refinement.learning_rates) == 1:
        return Choice(refinement.learning_rates[0], {}, ())
    weights = {task.name: 1 / len(tasks) for task in tasks}
    runs = {}
    for multiple in sorted(refinement.learning_rates):
        settings = refinement.training(finetuning, multiple)
        refiner = Refiner(previewer, model, tasks, store, start, settings)
        title = f"refinement at {multiple:g} of the rate" if progress else None
        runs[multiple] = refiner(weights, progress=title)
    losses = {multiple: weighted_loss(weights, run.evaluations) for multiple, run in runs.items()}
    best = min(losses, key=lambda multiple: losses[multiple])
    _logger.info("refinements at %g of the finetune's learning rate", best)
    return Choice(best, losses, tuple(runs.values()))
