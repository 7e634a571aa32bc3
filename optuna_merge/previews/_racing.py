"""Races: a preview that can't reach the promotion threshold any more stops early."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from optuna_merge.previews._previewer import Preview, Previewer
from optuna_merge.previews._race_test import Array, RaceTest, Score
from optuna_merge.tasks import Evaluation, Measurement, Tally, Task

_KEPT_BYTES = 64 << 20  # of earlier previews' values; what is dropped is computed again


@dataclass(frozen=True)
class Racing:
    """When a preview is given up.

    A preview is compared, example by example, with the *bar*: the full preview that stands at
    rank `ceil(multiple x budget)` among all so far, the budget being the promotions that so many
    previews allow. When the bar's score is out of reach the preview stops.

    Attributes:
        alpha: Chance that a preview is given up which would have reached the bar; for all looks
            of a race together.
        parts: The validation data are cut into so many parts, and after each but the last the
            race is looked at.
        multiple: How far below the promotion threshold the bar stands; at least 1.

    Raises:
        ValueError: a number out of its range.
    """

    alpha: float = 0.01
    parts: int = 8
    multiple: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 0.5:
            raise ValueError(f"alpha must be between 0 and 0.5, got {self.alpha}")
        if self.parts < 2:
            raise ValueError(f"parts must be at least 2, got {self.parts}")
        if not self.multiple >= 1:
            raise ValueError(f"multiple must be at least 1, got {self.multiple}")


@dataclass(frozen=True)
class PartialPreview:
    """What is known of a preview that was given up.

    Attributes:
        weights: The task weights.
        metrics: Estimate of each task's metric on all examples, by task: the bar's metric plus
            the mean difference on the examples that were seen. Its standard error is that of a
            full preview together with the estimate's own.
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
    examples are kept for the latest previews (64 MiB of them); a bar that another process made,
    or that was dropped, is previewed again.

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
        obstacle = racing_obstacle(previewer.tasks)
        if obstacle is not None:
            raise ValueError(obstacle)
        self._previewer = previewer
        self._tasks = previewer.tasks
        self._score, self._maximize, self._racing = score, maximize, racing
        smallest = min(sum(batches.sizes) for batches in previewer.batches().values())
        self._parts = max(1, min(racing.parts, smallest))
        self._batches = previewer.batches(self._parts)
        self._values: OrderedDict[tuple[float, ...], list[Array]] = OrderedDict()

    def __call__(self, weights: Mapping[str, float]) -> Preview:
        """The full preview at `weights`, task weight by name, on the simplex."""
        preview = self._run(weights, None)
        assert isinstance(preview, Preview)
        return preview

    def race(
        self, weights: Mapping[str, float], bar: Mapping[str, float], bar_score: float
    ) -> Preview | PartialPreview:
        """The preview at `weights`, or what is known when the bar's score is out of reach.

        Args:
            weights: Task weight by name, on the simplex.
            bar: Task weights of the full preview that stands at the bar.
            bar_score: Its score.
        """
        key = self._key(bar)
        if key not in self._values:
            self(bar)
        self._values.move_to_end(key)
        test = RaceTest(
            self._values[key],
            bar_score,
            self._score,
            [1.0 if task.metric.greater_is_better else -1.0 for task in self._tasks],
            self._maximize,
            self._racing.alpha,
            max(1, self._parts - 1),
        )
        return self._run(weights, test)

    def _run(
        self, weights: Mapping[str, float], test: RaceTest | None
    ) -> Preview | PartialPreview:
        started = time.perf_counter()
        self._previewer.load(weights)
        model = self._previewer.model
        model.eval()
        tallies = {task.name: Tally(task) for task in self._tasks}
        for part in range(self._parts):
            for task in self._tasks:
                batches = self._batches[task.name].part(part)
                tallies[task.name].add(partial(model, task=task.name), batches)
            if test is None or part == self._parts - 1:
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
            task.name: Measurement(
                float(mean), float(np.hypot(error, v.std(ddof=1) / len(r) ** 0.5))
            )
            for task, mean, error, v, r in zip(
                self._tasks, found.means, found.errors, values, test.references
            )
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


def racing_obstacle(tasks: tuple[Task, ...]) -> str | None:
    """Why previews of these tasks can't be raced, or None."""
    for task in tasks:
        if task.metric.per_example is None:
            return (
                f"previews can't be raced: metric {task.metric.name!r} of task {task.name!r} is "
                f"no mean over examples (it has no per_example)"
            )
        if any(metric.generated for metric in task.metrics):
            return f"previews can't be raced: task {task.name!r} has metrics of generated texts"
    return None
