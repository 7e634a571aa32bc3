"""Finetunes replayed from a table of task weights: what they cost and what is seen of them.

Needs NumPy only: the other libraries' environments import it, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_TIE = 1e-9


@dataclass(frozen=True)
class Landscape:
    """One score of finetunes at some task weights; larger is better.

    Attributes:
        weights: `n x T`.
        steps: Training steps after which finetunes are evaluated; the last are a whole finetune.
        values: `seeds x rungs x n`.
    """

    weights: Array
    steps: tuple[int, ...]
    values: Array

    @property
    def truth(self) -> Array:
        """Whole finetunes, the mean over seeds; `n`."""
        return np.asarray(self.values[:, -1].mean(axis=0))

    @property
    def noise(self) -> float:
        """Standard deviation of one whole finetune over seeds, pooled; NaN for one seed."""
        if len(self.values) < 2:
            return float("nan")
        return float(np.sqrt(self.values[:, -1].var(axis=0, ddof=1).mean()))

    def as_json(self) -> dict[str, Any]:
        return {
            "weights": self.weights.tolist(),
            "steps": list(self.steps),
            "values": self.values.tolist(),
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Landscape:
        return cls(
            np.array(found["weights"]), tuple(map(int, found["steps"])), np.array(found["values"])
        )


class Truth(NamedTuple):
    """One whole finetune.

    Attributes:
        cost: All that was spent until it ended, in finetunes.
        point: Index of its weights.
        seen: The score of its seed.
    """

    cost: float
    point: int
    seen: float


class Finetunes:
    """The finetunes of one search, one after the other.

    Every finetune has a seed of its own, drawn from those in the table, and goes on at its next
    rung from where it stopped.

    Args:
        landscape: What is searched.
        seed: Of the search: which seeds finetunes have, and of equally near points which is taken.
        budget: When to stop, in finetunes.
    """

    def __init__(self, landscape: Landscape, seed: int, budget: float) -> None:
        self.landscape = landscape
        self.spent = 0.0
        self.truths: list[Truth] = []
        self._budget = budget
        self._rng = np.random.default_rng([seed, 0])

    @property
    def is_over(self) -> bool:
        return self.spent >= self._budget - _TIE

    def spend(self, steps: float) -> None:
        """Count training steps."""
        self.spent += steps / self.landscape.steps[-1]

    def nearest(self, numbers: Sequence[float]) -> int:
        """The point of the table nearest to some numbers from 0 on, divided by their sum."""
        w = np.asarray(numbers, dtype=float)
        w = w / w.sum() if w.sum() > 0 else np.full(len(w), 1 / len(w))
        distance = np.square(self.landscape.weights - w).sum(axis=1)
        return int(self._rng.choice(np.flatnonzero(distance < distance.min() + _TIE)))

    def begin(self, point: int) -> Finetune:
        return Finetune(self, point, int(self._rng.integers(len(self.landscape.values))))


class Finetune:
    """One finetune at a point of the table.

    Attributes:
        point: The point.
        seed: Index of its seed.
    """

    def __init__(self, of: Finetunes, point: int, seed: int) -> None:
        self.point, self.seed = point, seed
        self._of = of
        self._steps = 0

    def train(self, rung: int = -1, *, free: bool = False) -> float:
        """The score at a rung; what is missing until there is trained and paid, unless free."""
        landscape = self._of.landscape
        rung %= len(landscape.steps)
        value = float(landscape.values[self.seed, rung, self.point])
        if landscape.steps[rung] > self._steps:
            if not free:
                self._of.spend(landscape.steps[rung] - self._steps)
            self._steps = landscape.steps[rung]
            if rung == len(landscape.steps) - 1:
                self._of.truths.append(Truth(self._of.spent, self.point, value))
        return value


def uniform(n_tasks: int) -> list[float]:
    return [1 / n_tasks] * n_tasks
