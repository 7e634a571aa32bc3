"""What a study looks for, once each task's metric alone is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from optuna_merge.goals._constraints import Limits
from optuna_merge.goals._scores import PARETO, Score

Array = npt.NDArray[np.float64]
Direction = Literal["maximize", "minimize"]
"""The direction of an objective."""


@dataclass(frozen=True)
class Goal:
    """Objectives and constraints as functions of the tasks' metrics.

    Attributes:
        score: The one objective; None: each task's metric is an objective of its own.
        greater_is_better: By task, in order, whether its metric is to be maximised.
        alone: By task, in order, its metric when the model is finetuned on that task only.
        limits: The constraints; None: there are none.
    """

    score: Score | None
    greater_is_better: Mapping[str, bool]
    alone: Mapping[str, float]
    limits: Limits | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names, in order."""
        return tuple(self.greater_is_better)

    @property
    def is_pareto(self) -> bool:
        """Whether each task's metric is an objective of its own."""
        return self.score is None

    @property
    def name(self) -> str:
        """The score's name."""
        return PARETO if self.score is None else self.score.name

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Directions of the study, one per objective."""
        if self.score is not None:
            return ("maximize" if self.score.maximize else "minimize",)
        return tuple("maximize" if up else "minimize" for up in self.greater_is_better.values())

    def score_of(self, metrics: Mapping[str, float]) -> float:
        """The score of the tasks' metrics.

        Raises:
            ValueError: there is no single score.
        """
        return self._the_score()(metrics, self.alone)

    def values_of(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """The objective values of the tasks' metrics."""
        if self.score is None:
            return tuple(metrics[task] for task in self.tasks)
        return (self.score_of(metrics),)

    def scores(self, metrics: Array) -> Array:
        """`score_of` many points at once, `... x tasks` to `...`, as `PreviewSampler` wants it."""
        return self._the_score().over(metrics, self.alone)

    def _the_score(self) -> Score:
        if self.score is None:
            raise ValueError("a Pareto study has several objectives and no single score")
        return self.score
