"""What the library asks of somebody else's training program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from optuna_merge.fitting import Damping, Report
from optuna_merge.previews import anchor_share
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

    @property
    def makes_previews(self) -> bool:
        """Whether it is a task's own run, or at uniform weights: its parameters are asked for."""
        numbers = self.weights.values()
        return max(numbers) == 1 or max(numbers) - min(numbers) < 1e-6


@dataclass(frozen=True)
class Previews:
    """The previews of a program: what merges of its task runs are worth.

    Attributes:
        metrics: Task weights to the metrics of the merge, by task.
        settings: How the merges are made, as JSON values.
        hashes: Of what they are made of, by task.
        anchor: Of the finetune at uniform weights that corrects them; None: there is none.
        damping: What was added to curvature; None for averaging.
        seconds: What it took to make them.
        merged: Task weights to the trained parameters of the merge, by name; None: they are in
            files alone.
    """

    metrics: Callable[[Mapping[str, float]], Mapping[str, float]]
    settings: Mapping[str, Any]
    hashes: Mapping[str, str]
    anchor: str | None = None
    damping: Damping | None = None
    seconds: float = 0.0
    merged: Callable[[Mapping[str, float]], Mapping[str, Tensor]] | None = None


class Program(Protocol):
    """Finetunes by another training program, as a study needs them.

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

    def model(self, folder: Path) -> Path:
        """The model of the run that trained in this folder, a file or a folder."""

    def previews(self, runs: Mapping[str, Path], anchor: Path | None, folder: Path) -> Previews:
        """Make what previews need of the tasks' own runs, or find it.

        Args:
            runs: Folder of each task's own run.
            anchor: Folder of the finetune at uniform weights; None: merges stay as they are.
            folder: Where what is made is kept.
        """


class AdoptingProgram(Program, Protocol):
    """A program that takes checkpoints which you already have as task runs."""

    def adopt(self, run: Run, path: Path) -> Mapping[str, float]:
        """Take a checkpoint that is there as a task's own run, into the folder of this run.

        Returns:
            Its metrics, by task.

        Raises:
            ValueError: it doesn't fit; the message says why.
        """


ANCHOR = "uniform"
"""Stands for the finetune at uniform weights; no task is called so."""


def factors(weights: Mapping[str, float], *, anchored: bool) -> dict[str, float]:
    """What each run counts for, that at uniform weights as `ANCHOR`."""
    if not anchored:
        return dict(weights)
    share = anchor_share(weights.values())
    each = {task: weight - share / len(weights) for task, weight in weights.items()}
    return each | {ANCHOR: share}
