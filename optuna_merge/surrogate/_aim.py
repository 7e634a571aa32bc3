"""What sampler and pruner look for. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optuna_merge.trials import History, Series

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Aim:
    """What a study looks for.

    Attributes:
        maximize: By objective, whether it is maximised.
        score: What the one objective is of the tasks' metrics; None: not known.
        constraints: From the tasks' metrics to values that are feasible at 0 or less.
        reference: The point that hypervolumes are measured from.
        greater_is_better: By task, of its metric; (): as the objective is.
    """

    maximize: tuple[bool, ...]
    score: Callable[[Array], Array] | None = None
    constraints: Callable[[Array], Array] | None = None
    reference: Array | None = None
    greater_is_better: tuple[bool, ...] = ()

    @property
    def signs(self) -> tuple[float, ...]:
        """1 for each objective that is maximised, -1 for the others."""
        return tuple(1.0 if m else -1.0 for m in self.maximize)

    def values(self, history: History) -> list[Series]:
        """What the study knows of each objective."""
        if len(self.maximize) == 1:
            return [history.score(self.signs[0])]
        return [history.objective(i, len(self.signs), sign) for i, sign in enumerate(self.signs)]

    def metrics(self, history: History) -> list[Series]:
        """Of each task's metric, if the one objective is a known score of them; else nothing."""
        if len(self.maximize) > 1 or self.score is None:
            return []
        senses = self.greater_is_better or self.maximize * len(history.tasks)
        return [history.metric(i, 1.0 if great else -1.0) for i, great in enumerate(senses)]
