"""A workbench that looks previews and truths up in tables: searches are replayed as they run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from optuna_merge.fitting import Measured, Report, anchor_weights
from optuna_merge.goals import Goal, make_score
from optuna_merge.tasks import Measurement
from studies.search.replay import Array, Finetunes
from studies.search.tables import Tables


class TableWorkbench:
    """A `Workbench` of tables, at whose points all weights are taken; each thing is paid once.

    Task runs and posteriors are paid at once, a task alone is its task run. (Its preview and its
    finetune are one point of the table, whichever weights are as near to it.)

    Args:
        tables: Previews and truths.
        score: The score's name in a definition.
        seed: Of the search: which seed its finetunes have, and which posteriors are its.
        budget: When to stop, in finetunes.
    """

    reference_point: Mapping[str, float] = {}
    costs: Mapping[str, float] = {}

    def __init__(self, tables: Tables, score: str, seed: int, budget: float) -> None:
        self.finetunes = Finetunes(tables.landscape(score), seed, budget)
        self.finetunes.pay(tables.prices.task_runs + np.array(tables.prices.posteriors))
        self._tables = tables
        self._previews = tables.previews[seed % len(tables.previews)]
        self._points: dict[tuple[float, ...], int] = {}
        self.names = tables.tasks
        self.anchors = anchor_weights(tables.tasks, uniform=tables.anchored)
        self.fingerprint = f"{tables.name}, {score}, seed {seed}"
        self.steps = tables.steps[-1]
        self.parts: Mapping[str, Any] = {"finetuning": {"steps": self.steps}, "score": score}
        alone = tables.alone or dict.fromkeys(tables.tasks, 1.0)
        up = dict.fromkeys(tables.tasks, True)
        self.goal = Goal(make_score(score, tables.tasks), up, alone)

    def point(self, weights: Mapping[str, float]) -> int:
        """The point of the table that stands for the weights."""
        key = tuple(weights[task] for task in self.names)
        if key not in self._points:
            self._points[key] = self.finetunes.nearest(key)
        return self._points[key]

    def preview(self, weights: Mapping[str, float]) -> Measured:
        """The merge's metrics; they are paid."""
        self.finetunes.pay(self._tables.prices.preview)
        seconds = self._tables.prices.preview[-1]
        return self._measured(self._previews[self.point(weights)], seconds)

    def finetune(
        self,
        weights: Mapping[str, float],
        report: Report,
        *,
        repeat: int = 0,
        title: str | None = None,
    ) -> Measured:
        """A whole finetune's metrics; a task alone is paid already.

        A repeat is paid and has the next seed of the table, where there are three or more. (It is
        one of the judge's. Of two the other one is all that the judge has: the repeat then has
        the same values once more.)
        """
        point, seeds = self.point(weights), len(self._tables.truths)
        if repeat:
            active = sum(weight > 0 for weight in weights.values())
            self.finetunes.pay(self._tables.prices.finetune(active))
            seed = self.finetunes.seed + (repeat if seeds > 2 else 0)
            again = self._tables.truths[seed % seeds, -1, point]
            return self._measured(again, float(self._tables.prices.finetune(active)[-1]))
        finetune = self.finetunes.begin(point)
        finetune.train(free=max(weights.values()) == 1.0)
        seconds = self._tables.prices.finetune(sum(w > 0 for w in weights.values()))[-1]
        metrics = self._tables.truths[self.finetunes.seed, -1, finetune.point]
        return self._measured(metrics, float(seconds))

    def _measured(self, metrics: Array, seconds: float) -> Measured:
        """Accuracies with their binomial errors; seconds in finetunes."""
        found = dict(zip(self.names, metrics.tolist()))
        n = self._tables.examples
        return Measured(
            {t: Measurement(m, float(np.sqrt(m * (1 - m) / n))) for t, m in found.items()}, seconds
        )
