"""Races: a preview that can't reach the promotion threshold any more stops early."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from optuna_merge._turns import models_turn
from optuna_merge.models import MultitaskModel
from optuna_merge.previews._previewer import Preview, Previewer
from optuna_merge.previews._race_test import MIN_EXAMPLES, Array, RaceTest, Score
from optuna_merge.tasks import Evaluation, EvaluationBatches, Measurement, Tally, Task

_ENDS = (1 / 24, 1 / 12, 1 / 8, 1 / 6, 1 / 4, 3 / 8, 1 / 2, 2 / 3, 5 / 6, 1.0)
"""Shares of the data after which a race is looked at: closer in the beginning, where looking is
worth most."""

_KEPT_BYTES = 64 << 20  # of earlier previews' values; what is dropped is computed again


@dataclass(frozen=True)
class Racing:
    """When a preview is given up: its score can't reach the bar any more; see `race_bar`.

    Attributes:
        alpha: Chance that a preview is given up which would have reached the bar; for all looks
            of a race together.
        slack: How far the bar stands below the promotion threshold, in standard deviations of
            the rank of a preview that will be promoted.

    Raises:
        ValueError: a number out of its range.
    """

    alpha: float = 0.01
    slack: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 0.5:
            raise ValueError(f"alpha must be between 0 and 0.5, got {self.alpha}")
        if not self.slack >= 0:
            raise ValueError(f"slack must be 0 or more, got {self.slack}")


@dataclass(frozen=True)
class PartialPreview:
    """What is known of a preview that was given up.

    Attributes:
        weights: The task weights.
        metrics: Estimate of each task's metric on all examples, by task: the metric of a full
            preview nearby plus the mean difference on the examples that were seen. Its standard
            error is that of a full preview together with the estimate's own.
        fraction: Share of the examples that was evaluated.
        seconds: Time for merge and evaluation together.
    """

    weights: dict[str, float]
    metrics: dict[str, Measurement]
    fraction: float
    seconds: float


class RacingPreviewer:
    """Previews on data in parts, in full or raced against an earlier preview.

    A race that is not given up gives, byte for byte, what the full preview gives. Values of
    examples are kept for the latest previews (64 MiB of them); a reference that another process
    made, or that was dropped, is previewed again.

    Args:
        previewer: Merges, and holds model, tasks and data.
        score: From metrics `... x tasks` to scores, as `FittedStudy.scores`. It should get no
            worse when a task's metric gets better.
        maximize: Whether a larger score is better.
        racing: When to give up.

    Raises:
        ValueError: a task's metric is no mean over examples; see `racing_obstacle`.
    """

    def __init__(
        self, previewer: Previewer, score: Score, *, maximize: bool, racing: Racing
    ) -> None:
        obstacle = racing_obstacle(previewer.model, previewer.tasks)
        if obstacle is not None:
            raise ValueError(obstacle)
        self._previewer = previewer
        self._tasks = previewer.tasks
        self._score, self._maximize, self._racing = score, maximize, racing
        self._settled: torch.device | None = None
        self._batches: dict[str, EvaluationBatches] = {}
        self._values: OrderedDict[tuple[float, ...], list[Array]] = OrderedDict()

    @models_turn()
    def __call__(self, weights: Mapping[str, float]) -> Preview:
        """The full preview at `weights`, task weight by name, on the simplex."""
        preview = self._run(weights, None)
        assert isinstance(preview, Preview)
        return preview

    @models_turn()
    def race(
        self,
        weights: Mapping[str, float],
        bar_score: float,
        references: Sequence[Mapping[str, float]],
    ) -> Preview | PartialPreview:
        """The preview at `weights`, or what is known when the bar's score is out of reach.

        It is compared with the reference at the nearest weights, with which it disagrees on the
        fewest examples; whether that one is good or bad doesn't matter.

        Args:
            weights: Task weight by name, on the simplex.
            bar_score: The score to reach.
            references: Weights of full previews; at least one.
        """
        here = np.array(self._key(weights))
        key = min(map(self._key, references), key=lambda k: float(np.square(k - here).sum()))
        if key not in self._values:
            self(dict(zip((task.name for task in self._tasks), key)))
        self._values.move_to_end(key)
        test = RaceTest(
            self._values[key],
            bar_score,
            self._score,
            [1.0 if task.metric.greater_is_better else -1.0 for task in self._tasks],
            self._maximize,
            self._racing.alpha,
            len(_ENDS) - 1,
        )
        return self._run(weights, test)

    def _run(
        self, weights: Mapping[str, float], test: RaceTest | None
    ) -> Preview | PartialPreview:
        started = time.perf_counter()
        self._previewer.load(weights)
        model = self._previewer.model
        model.eval()
        if self._settled != model.device:
            self._batches, self._settled = self._previewer.batches(_ENDS), model.device
        tallies = {task.name: Tally(task) for task in self._tasks}
        for part in range(len(_ENDS)):
            for task in self._tasks:
                batches = self._batches[task.name].part(part)
                with self._previewer.autocast():
                    tallies[task.name].add(partial(model, task=task.name), batches)
            if test is None or part == len(_ENDS) - 1:
                continue
            if min(tally.count for tally in tallies.values()) < MIN_EXAMPLES:
                continue
            values = [np.asarray(tallies[task.name].values()) for task in self._tasks]
            if test.is_lost(values):
                seconds = time.perf_counter() - started
                return self._partial(weights, test, values, seconds)
        evaluations: dict[str, Evaluation] = {n: t.evaluation() for n, t in tallies.items()}
        self._keep(weights, [np.asarray(tally.values()) for tally in tallies.values()])
        return Preview(dict(weights), evaluations, time.perf_counter() - started)

    def _partial(
        self, weights: Mapping[str, float], test: RaceTest, values: list[Array], seconds: float
    ) -> PartialPreview:
        found = test.estimate(values)
        metrics = {
            task.name: Measurement(float(mean), _standard_error(v, reference))
            for task, mean, v, reference in zip(self._tasks, found.means, values, test.references)
        }
        seen, size = sum(map(len, values)), sum(map(len, test.references))
        return PartialPreview(dict(weights), metrics, seen / size, seconds)

    def _keep(self, weights: Mapping[str, float], values: list[Array]) -> None:
        self._values[self._key(weights)] = values
        most = max(2, _KEPT_BYTES // max(1, sum(v.nbytes for v in values)))
        while len(self._values) > most:
            self._values.popitem(last=False)

    def _key(self, weights: Mapping[str, float]) -> tuple[float, ...]:
        return tuple(float(weights[task.name]) for task in self._tasks)


def _standard_error(values: Array, reference: Array) -> float:
    """Of a metric estimated from n of N examples: of a full preview, and of the estimate of it.

    One example more is counted, that differs by the reference's standard deviation s, so that a
    few examples without any difference are not taken for certainty:
    s^2 / N + (sum(d^2) + s^2) / (n + 1) (1 / n - 1 / N).
    """
    n, size, variance = len(values), len(reference), float(reference.var())
    differences = float(np.square(values - reference[:n]).sum())
    return math.sqrt(
        variance / size + (differences + variance) / (n + 1) * max(1 / n - 1 / size, 0.0)
    )


def racing_obstacle(model: MultitaskModel, tasks: Sequence[Task]) -> str | None:
    """Why previews of this model and these tasks can't be raced, or None."""
    if model.reestimates:
        return "previews can't be raced: the model re-estimates its batch norms' statistics"
    for task in tasks:
        if task.metric.per_example is None:
            return (
                f"previews can't be raced: metric {task.metric.name!r} of task {task.name!r} is "
                f"no mean over examples (it has no per_example)"
            )
        if not all(metric.in_one_pass for metric in task.metrics):
            return (
                f"previews can't be raced: task {task.name!r} has metrics of generated texts or "
                f"of whole models"
            )
    return None
