"""What a study needs of whoever trains, and what all who train have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from optuna_merge.goals import Goal, below_nadir
from optuna_merge.tasks import Measurement
from optuna_merge.trials import alone_weights as alone_weights, uniform_weights as uniform_weights

Report = Callable[[int, Mapping[str, float]], None]
"""Called after rungs with the training step and the tasks' metrics; it may raise to end there."""


@dataclass(frozen=True)
class Measured:
    """The tasks' metrics at some task weights.

    Attributes:
        metrics: By task, with the standard error over validation examples (NaN: not known).
        seconds: What it took to find them.
        reused: Whether a finetune was found finished: nothing was trained.
    """

    metrics: Mapping[str, Measurement]
    seconds: float
    reused: bool = False

    @property
    def values(self) -> dict[str, float]:
        """The metrics alone."""
        return {task: metric.value for task, metric in self.metrics.items()}


class Workbench(Protocol):
    """Previews and truths of one definition, at any task weights.

    `FittedStudy` is one: task runs, posteriors and a training loop. Whatever gives previews and
    truths another way (a table that was made before, a program that trains) is one, too.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Task names, in order."""

    @property
    def goal(self) -> Goal:
        """What the study looks for."""

    @property
    def parts(self) -> Mapping[str, Any]:
        """The definition as JSON values, part by part, to say what differs between two."""

    @property
    def fingerprint(self) -> str:
        """One hash of all that previews and truths depend on."""

    @property
    def reference_point(self) -> Mapping[str, float]:
        """By task, the metric that hypervolumes are measured from; asked of Pareto studies."""

    @property
    def steps(self) -> int:
        """Training steps of one finetune."""

    @property
    def costs(self) -> Mapping[str, float]:
        """What was spent before the first preview: training steps and seconds, by what for."""

    @property
    def anchors(self) -> Sequence[Mapping[str, float]]:
        """Task weights whose truths the previews are made from; there they prove nothing."""

    def preview(self, weights: Mapping[str, float]) -> Measured:
        """What the merge at these task weights is worth, without training.

        Raises:
            NotFiniteError: a task's metric is NaN or infinite.
        """

    def finetune(
        self,
        weights: Mapping[str, float],
        report: Report,
        *,
        repeat: int = 0,
        title: str | None = None,
    ) -> Measured:
        """Finetune at these task weights, or find the finished run; the last rung is the end.

        Args:
            weights: Task weight by name, on the simplex.
            report: Called after each rung; what it raises ends the run, which goes on from there
                when it is wanted again.
            repeat: With 0 the seed is the definition's; with r > 0 it is the same finetune with
                another seed, the r-th.
            title: Of a progress bar; None: there is none.

        Raises:
            TrainingDivergedError: a loss or gradient is not finite.
            NotFiniteError: a task's metric is NaN or infinite.
        """


Weights = Mapping[str, float]


def anchor_weights(names: Sequence[str], *, uniform: bool) -> tuple[dict[str, float], ...]:
    """Each task alone, and uniform weights where the finetune there corrects the merges."""
    return (*alone_weights(names).values(), *([uniform_weights(names)] if uniform else []))


def reference_point(
    runs: Iterable[Mapping[str, float]], greater_is_better: Mapping[str, bool]
) -> dict[str, float]:
    """A tenth of the range beyond the worst that each task has in the single-task runs."""
    signs = np.array([1.0 if greater else -1.0 for greater in greater_is_better.values()])
    points = [[metrics[task] for task in greater_is_better] for metrics in runs]
    return dict(zip(greater_is_better, (signs * below_nadir(signs * np.array(points))).tolist()))


def counts_as_reused(
    found: bool, weights: Weights, anchors: Sequence[Weights], repeat: int
) -> bool:
    """Whether a run that was found costs nothing; the anchor's cost is counted with its trial."""
    is_anchor = not repeat and max(weights.values()) < 1 and weights in anchors
    return found and not is_anchor
