"""Finetunes replayed from a table of task weights: what they cost and what is seen of them.

Needs NumPy only: the other libraries' environments import it, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

AXES = ("steps", "examples", "seconds")
"""What costs are counted in, each in units of one finetune at uniform weights."""

REDUCTION = 3
"""Of the multi-fidelity methods: each rung has so many times the resource of the one before."""

_TIE = 1e-9


def resources(rungs: int) -> list[int]:
    """The rungs' resources as these methods are told them: 1, 3, 9.

    Rounded thirds of a finetune's steps (17, 50 and 150, say) are no thirds to a program: a pruner
    that multiplies 17 by 3 gets 51 and never asks at 50.
    """
    return [REDUCTION**rung for rung in range(rungs)]


@dataclass(frozen=True)
class Prices:
    """What the parts of a search cost on each of `AXES`, in finetunes (`prices.py` measures them).

    Attributes:
        alone: A finetune on one task alone.
        posteriors: All posteriors, their task runs not among them.
        preview: One preview.
        tasks: How many tasks.
    """

    alone: tuple[float, float, float]
    posteriors: tuple[float, float, float]
    preview: tuple[float, float, float]
    tasks: int

    def finetune(self, active: int) -> Array:
        """Of a finetune in which so many tasks have weight, linear from one task to all."""
        one = np.array(self.alone)
        if self.tasks == 1:
            return one
        return np.asarray(one + (1 - one) * (active - 1) / (self.tasks - 1))

    @property
    def task_runs(self) -> Array:
        return self.tasks * np.array(self.alone)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Prices:
        alone, posteriors, preview = (
            (float(steps), float(examples), float(seconds))
            for steps, examples, seconds in (
                found[part] for part in ("alone", "posteriors", "preview")
            )
        )
        return cls(alone, posteriors, preview, int(found["tasks"]))


@dataclass(frozen=True)
class Landscape:
    """One score of finetunes at some task weights; larger is better.

    Attributes:
        weights: `n x T`.
        steps: Training steps after which finetunes are evaluated; the last are a whole finetune.
        values: `seeds x rungs x n`.
        prices: Of the parts of a search.
    """

    weights: Array
    steps: tuple[int, ...]
    values: Array
    prices: Prices

    @property
    def truth(self) -> Array:
        """Whole finetunes, the mean over seeds; `n`."""
        return np.asarray(self.values[:, -1].mean(axis=0))

    @property
    def noise(self) -> float:
        """Standard deviation of one whole finetune over seeds, pooled over interior weights.

        On faces a task that has no weight adds noise of its own. NaN for one seed.
        """
        if len(self.values) < 2:
            return float("nan")
        inside = self.weights.min(axis=1) > 0
        return float(np.sqrt(self.values[:, -1, inside].var(axis=0, ddof=1).mean()))

    def seen_seed(self, search: int) -> int:
        """The seed of all finetunes of a search, as a study has one."""
        return search % len(self.values)

    def judged(self, search: int) -> Array:
        """Whole finetunes by the seeds that the search does not see, their mean; `n`.

        With one seed in the table there is no other: that seed.
        """
        if len(self.values) == 1:
            return self.truth
        return np.asarray(np.delete(self.values[:, -1], self.seen_seed(search), 0).mean(axis=0))

    def as_json(self) -> dict[str, Any]:
        return {
            "weights": self.weights.tolist(),
            "steps": list(self.steps),
            "values": self.values.tolist(),
            "prices": asdict(self.prices),
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Landscape:
        return cls(
            np.array(found["weights"]),
            tuple(map(int, found["steps"])),
            np.array(found["values"]),
            Prices.from_json(found["prices"]),
        )


class Truth(NamedTuple):
    """One whole finetune.

    Attributes:
        costs: All that was spent until it ended, on each of `AXES`.
        point: Index of its weights.
        seen: The score of the search's seed.
    """

    costs: tuple[float, ...]
    point: int
    seen: float


class Record(NamedTuple):
    """What a search has done.

    Attributes:
        truths: All whole finetunes in their order.
        ends: How many finetunes ended at each rung; the last are the whole ones.
    """

    truths: list[Truth]
    ends: list[int]


class Finetunes:
    """The finetunes of one search, one after the other.

    All have the search's seed, as the finetunes of a study have, and each goes on at its next rung
    from where it stopped.

    Args:
        landscape: What is searched.
        seed: Of the search: which seed its finetunes have, and of equally near points which is
            taken.
        budget: When to stop, in finetunes: when so much is spent on every axis.
    """

    def __init__(self, landscape: Landscape, seed: int, budget: float) -> None:
        self.landscape = landscape
        self.seed = landscape.seen_seed(seed)
        self.spent = np.zeros(len(AXES))
        self.truths: list[Truth] = []
        self.begun: list[Finetune] = []
        self._budget = budget
        self._rng = np.random.default_rng([seed, 0])

    @property
    def is_over(self) -> bool:
        return bool(self.spent.min() >= self._budget - _TIE)

    @property
    def record(self) -> Record:
        ends = Counter(f.rung for f in self.begun if f.rung >= 0)
        return Record(self.truths, [ends[rung] for rung in range(len(self.landscape.steps))])

    def pay(self, price: Array | Sequence[float]) -> None:
        """Count a price on each of `AXES`."""
        self.spent = self.spent + np.asarray(price)

    def nearest(self, numbers: Sequence[float]) -> int:
        """The point of the table nearest to some numbers from 0 on, divided by their sum."""
        w = np.asarray(numbers, dtype=float)
        w = w / w.sum() if w.sum() > 0 else np.full(len(w), 1 / len(w))
        distance = np.square(self.landscape.weights - w).sum(axis=1)
        return int(self._rng.choice(np.flatnonzero(distance < distance.min() + _TIE)))

    def begin(self, point: int) -> Finetune:
        self.begun.append(Finetune(self, point))
        return self.begun[-1]


@dataclass
class Finetune:
    """One finetune at a point of the table.

    Attributes:
        of: The search's finetunes.
        point: The point.
        rung: The last rung that it has reached; -1 before the first.
    """

    of: Finetunes
    point: int
    rung: int = field(default=-1, init=False)

    def train(self, rung: int = -1, *, free: bool = False) -> float:
        """The score at a rung; what is missing until there is trained and paid, unless free."""
        landscape = self.of.landscape
        steps = landscape.steps
        rung %= len(steps)
        value = float(landscape.values[self.of.seed, rung, self.point])
        if rung > self.rung:
            if not free:
                share = (steps[rung] - (steps[self.rung] if self.rung >= 0 else 0)) / steps[-1]
                active = int((landscape.weights[self.point] > 0).sum())
                self.of.pay(share * landscape.prices.finetune(active))
            self.rung = rung
            if rung == len(steps) - 1:
                self.of.truths.append(Truth(tuple(self.of.spent.tolist()), self.point, value))
        return value


def uniform(n_tasks: int) -> list[float]:
    return [1 / n_tasks] * n_tasks


def simplex_weights(numbers: Sequence[float]) -> list[float]:
    """Numbers from 0 to 1 as weights that are uniform on the simplex where these are uniform.

    -log(u), divided by the sum: exponential numbers, whose shares are Dirichlet(1, ..., 1).
    Dividing the numbers themselves by their sum leaves the corners of the simplex nearly empty.
    """
    found = -np.log(np.clip(numbers, 1e-12, 1 - 1e-12))
    return list((found / found.sum()).tolist())
