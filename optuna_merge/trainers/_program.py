"""What the library asks of somebody else's training program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from optuna_merge.fitting import Report
from optuna_merge.posteriors import PosteriorSettings
from optuna_merge.trainers._units import WeightUnit


@dataclass(frozen=True)
class Run:
    """One finetune that a program is asked for.

    Attributes:
        weights: Task weights, on averaged losses.
        converted: The same in the program's unit.
        folder: Where it trains; of this run alone.
        repeat: 0, or the number of a repetition with another seed.
        title: Of a progress bar; None: there is none.
    """

    weights: Mapping[str, float]
    converted: Mapping[str, float]
    folder: Path
    repeat: int = 0
    title: str | None = None


@dataclass(frozen=True)
class Evaluated:
    """A model's numbers on validation data.

    Attributes:
        metrics: The study's metric, by task.
        losses: The loss, by task; empty where the program doesn't tell it.
    """

    metrics: Mapping[str, float]
    losses: Mapping[str, float] = field(default_factory=dict)


class Program(Protocol):
    """A finetune by somebody else's program, as a study needs it.

    All weight on one task is that task's own run: the same program, the same steps.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Task names, in order."""

    @property
    def unit(self) -> WeightUnit:
        """What its weights mean in its own loss."""

    @property
    def steps(self) -> int:
        """Training steps of one finetune."""

    def describe(self) -> Mapping[str, Any]:
        """All that its finetunes depend on but the tasks, as JSON values."""

    def describe_task(self, task: str) -> Any:
        """What its finetunes depend on of one task, as JSON values."""

    def train(self, run: Run, report: Report) -> None:
        """Train to the end; called again in the same folder, go on from the newest checkpoint.

        Reports come in order, those of an earlier call that still hold first. A report comes after
        the checkpoint of its step is safe. What it raises ends the training there.

        Raises:
            ProgramError: the program ended otherwise than it should.
        """

    def parameters(self, folder: Path) -> Mapping[str, Tensor]:
        """The trained parameters of a run that has ended, by name."""

    def evaluate(
        self, parameters: Mapping[str, Tensor], tasks: Mapping[str, Path], limit: int | None = None
    ) -> Evaluated:
        """The numbers of the model with these parameters.

        Args:
            parameters: Trained parameters, by name.
            tasks: Folders of the tasks' own runs.
            limit: Validation examples per task that are enough; None: all.
        """

    def squared_gradients(
        self, task: str, parameters: Mapping[str, Tensor], settings: PosteriorSettings
    ) -> Mapping[str, Tensor]:
        """The diagonal of the curvature of a task's averaged loss at the parameters.

        Raises:
            ValueError: the program can't tell.
        """
