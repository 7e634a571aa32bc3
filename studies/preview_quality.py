"""How true previews are, from tables of previews and of real finetunes at the same task weights.

Only interior weights count, where every task has some: at a task alone every merge is exact.
"""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from optuna_merge._base.files import atomic_path
from optuna_merge.calibration import rank_correlation
from optuna_merge.tasks import Evaluation
from optuna_merge.trials import canonical_weights

FINETUNE = "another finetune"
"""Name of the row that compares each seed's truths with the mean of the other seeds'."""

TRUTH = "truth"
"""The family of real finetunes."""

ANCHORED = "+anchor"
"""At the end of a family's name: the finetune at uniform weights corrects its merges."""

Weights = tuple[float, ...]


@dataclass(frozen=True)
class Point:
    """A model at some task weights; sequences are in the order of the tasks.

    Attributes:
        family: Posteriors that it is merged from; "truth" for a finetune, "none" for a shorter
            one from the pretrained body.
        seed: Of the finetune, or of the runs and labels that the posteriors are made from.
        weights: Task weights.
        steps: Training steps at these weights; 0 for a merge alone.
        seconds: What it took.
        score: The study's score.
        losses: Each task's loss on validation data.
        metrics: Each task's metric on validation data.
        start: "merged" or "pretrained": where the steps start.
        batch_size: Examples of each task in a step; 0 for a merge alone.
        rung: Of a truth, which of its evaluations under way this is, counted from 0.
    """

    family: str
    seed: int
    weights: Weights
    steps: int
    seconds: float
    score: float
    losses: tuple[float, ...]
    metrics: tuple[float, ...]
    start: str = "merged"
    batch_size: int = 0
    rung: int = 0

    @property
    def kind(self) -> str:
        """What it is a case of in a table: the family, and with it steps and batch size."""
        name = self.family if self.start == "merged" else self.start
        size = f" x {self.batch_size}" if self.batch_size else ""
        return f"{name} + {self.steps}{size}" if self.steps else name

    @property
    def examples(self) -> int:
        """Training examples of each task that were read at these weights."""
        return self.steps * self.batch_size


@dataclass(frozen=True)
class Quality:
    """What one kind of previews is worth; each number is a mean over posterior seeds.

    Attributes:
        kind: The family, of refined previews with steps and batch size; see `Point.kind`.
        seeds: How many seeds.
        error: Mean absolute error of the metrics, over interior weights and tasks.
        error_spread: Standard deviation of `error` over the seeds (NaN for one seed).
        bias: Mean of preview minus truth of the metrics.
        gap: Mean of the weighted loss of the preview minus that of the truth.
        gap_spread: Standard deviation of `gap` over the seeds.
        correlations: Spearman's rank correlation of previews and truths of each task's metric,
            and last of the score; NaN where there are too few points or no differences.
    """

    kind: str
    seeds: int
    error: float
    error_spread: float
    bias: float
    gap: float
    gap_spread: float
    correlations: tuple[float, ...]


def grid(count: int, divisions: int) -> list[Weights]:
    """All task weights of `count` tasks that are multiples of 1 / `divisions`."""

    def parts(places: int, left: int) -> Iterator[tuple[int, ...]]:
        if places == 1:
            yield (left,)
            return
        for first in range(left, -1, -1):
            for rest in parts(places - 1, left - first):
                yield first, *rest

    return [canonical_weights(numbers) for numbers in parts(count, divisions)]


def with_uniform(weightings: Sequence[Weights]) -> list[Weights]:
    """The weightings, and uniform weights after them where they are not among them."""
    count = len(weightings[0])
    near = [w for w in weightings if max(abs(x - 1 / count) for x in w) < 1e-6]
    return [*weightings, *([] if near else [canonical_weights([1.0] * count)])]


def point(
    family: str,
    seed: int,
    weights: Mapping[str, float],
    evaluations: Mapping[str, Evaluation],
    score: float,
    *,
    steps: int = 0,
    seconds: float = 0.0,
    start: str = "merged",
    batch_size: int = 0,
    rung: int = 0,
) -> Point:
    """The point of a model that was evaluated on all tasks, which `weights` gives in order."""
    return Point(
        family,
        seed,
        tuple(weights.values()),
        steps,
        seconds,
        score,
        tuple(evaluations[task].loss.value for task in weights),
        tuple(evaluations[task].metric.value for task in weights),
        start,
        batch_size,
        rung,
    )


def last_rungs(truths: Sequence[Point]) -> list[Point]:
    """The truths proper: of every finetune the rung at its end."""
    last: dict[tuple[int, Weights], Point] = {}
    for t in truths:
        key = (t.seed, t.weights)
        if key not in last or last[key].rung < t.rung:
            last[key] = t
    return list(last.values())


def qualities(truths: Sequence[Point], previews: Sequence[Point]) -> list[Quality]:
    """One row for each kind of previews, in their order, after that of the seed noise.

    Of truths the last rung counts. Previews are compared with the mean of the truths over all
    seeds. The first row is what a real finetune would be as a preview: each seed against the mean
    of the others.
    """
    inside = [t for t in last_rungs(truths) if min(t.weights) > 0]
    rows = []
    seeds = sorted({t.seed for t in inside})
    if len(seeds) > 1:
        rounds = [
            ([t for t in inside if t.seed == seed], _means([t for t in inside if t.seed != seed]))
            for seed in seeds
        ]
        row = _quality(FINETUNE, rounds)
        rows.append(replace(row, error_spread=math.nan))  # the rounds share their runs
    kinds = list(dict.fromkeys(p.kind for p in previews))
    expected = _means(inside)
    for kind in kinds:
        mine = [p for p in previews if p.kind == kind and min(p.weights) > 0]
        by_seed = [
            ([p for p in mine if p.seed == seed], expected)
            for seed in sorted({p.seed for p in mine})
        ]
        rows.append(_quality(kind, by_seed))
    return rows


def format_qualities(
    rows: Sequence[Quality], tasks: Sequence[str], title: str, notes: Mapping[str, str]
) -> str:
    """The rows as a plain-text table.

    Args:
        rows: From `qualities`.
        tasks: Task names in order.
        title: Of the last column.
        notes: What stands in it, by kind.
    """
    width = max(len(row.kind) for row in rows)
    columns = [f"{task[:9]:>9}" for task in (*tasks, "score")]
    lines = [
        f"{'':{width}}  {'error':>6} {'±':>5}  {'bias':>6}  {'loss gap':>8} {'±':>5} "
        f"{' '.join(columns)}  {title}"
    ]
    for row in rows:
        lines.append(
            f"{row.kind:{width}}  {row.error:6.4f} {row.error_spread:5.4f}  {row.bias:+6.3f}  "
            f"{row.gap:+8.4f} {row.gap_spread:5.4f} "
            f"{' '.join(f'{value:9.2f}' for value in row.correlations)}  "
            f"{notes.get(row.kind, '')}".rstrip()
        )
    return "\n".join(lines)


def as_written(weights: Iterable[float]) -> Weights:
    """Weights as the tables have them, which tell those that are read from others."""
    return tuple(float(_written(weight)) for weight in weights)


def _written(number: float) -> str:
    return f"{number:.7g}"


def write_points(path: Path, points: Sequence[Point], tasks: Sequence[str]) -> None:
    """Write truths, or previews, as CSV."""
    truths = all(p.family == TRUTH for p in points)
    header: list[object] = [f"weight_{t}" for t in tasks]
    if truths:
        header += ["seed", "rung"]
    else:
        header = ["family", "start", "posterior_seed", "batch_size", *header]
    header += ["steps", "seconds", "score"]
    header += [f"loss_{t}" for t in tasks] + [f"metric_{t}" for t in tasks]
    rows = [header]
    for p in points:
        weights = [*map(_written, p.weights)]
        numbers = [*map(_written, (p.score, *p.losses, *p.metrics))]
        if truths:
            labels: list[object] = [*weights, p.seed, p.rung]
        else:
            labels = [p.family, p.start, p.seed, p.batch_size, *weights]
        rows.append([*labels, p.steps, f"{p.seconds:.4g}", *numbers])
    write_csv(path, rows)


def read_points(path: Path) -> tuple[list[Point], list[str]]:
    """What `write_points` wrote, and the tasks' names.

    Raises:
        ValueError: it isn't such a file.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    header = "weight_"
    names = [c.removeprefix(header) for c in (rows[0] if rows else {}) if c.startswith(header)]
    if not names:
        raise ValueError(f"{path} has no rows with columns weight_<task>; see families.py")
    points = [
        Point(
            row.get("family", TRUTH),
            int(row.get("posterior_seed") or row["seed"]),
            tuple(float(row[f"weight_{name}"]) for name in names),
            int(row["steps"]),
            float(row["seconds"]),
            float(row["score"]),
            tuple(float(row[f"loss_{name}"]) for name in names),
            tuple(float(row[f"metric_{name}"]) for name in names),
            row.get("start", "pretrained"),
            int(row.get("batch_size", 0)),
            int(row.get("rung", 0)),
        )
        for row in rows
    ]
    return points, names


def means_of(points: Sequence[Point]) -> dict[Weights, tuple[float, ...]]:
    """Each task's metric and the score by weights, over the seeds."""
    return {
        weights: (*metrics.tolist(), score)
        for weights, (_, metrics, score) in _means(points).items()
    }


def write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    """Write rows, the header among them, atomically."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


Expected = Mapping[Weights, tuple[np.ndarray, np.ndarray, float]]
"""By weights: losses, metrics and score."""


def _means(truths: Sequence[Point]) -> Expected:
    """Over the seeds."""
    found: dict[Weights, list[Point]] = defaultdict(list)
    for truth in truths:
        found[truth.weights].append(truth)
    return {
        weights: (
            np.mean([t.losses for t in same], 0),
            np.mean([t.metrics for t in same], 0),
            float(np.mean([t.score for t in same])),
        )
        for weights, same in found.items()
    }


def _quality(kind: str, rounds: Sequence[tuple[Sequence[Point], Expected]]) -> Quality:
    errors, biases, gaps, correlations = [], [], [], []
    for points, expected in rounds:
        points = [p for p in points if p.weights in expected]
        if not points:
            raise ValueError(f"no truth at any interior weights that {kind!r} was previewed at")
        weights = np.array([p.weights for p in points])
        losses, metrics = (np.array(x) for x in zip(*((p.losses, p.metrics) for p in points)))
        true_losses, true_metrics, true_scores = (
            np.array(x) for x in zip(*(expected[p.weights] for p in points))
        )
        errors.append(np.abs(metrics - true_metrics).mean())
        biases.append((metrics - true_metrics).mean())
        gaps.append((weights * (losses - true_losses)).sum(1).mean())
        pairs = [*zip(metrics.T, true_metrics.T), ([p.score for p in points], true_scores)]
        correlations.append([spearman(x, y) for x, y in pairs])
    return Quality(
        kind,
        len(rounds),
        float(np.mean(errors)),
        _spread(errors),
        float(np.mean(biases)),
        float(np.mean(gaps)),
        _spread(gaps),
        tuple(np.mean(correlations, 0).tolist()),
    )


def _spread(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation of two lists; NaN where there are too few values, or all are equal."""
    # Metrics that are equal are ties: the rounding of a mean over seeds must not order them.
    found = rank_correlation(np.round(x, 6).tolist(), np.round(y, 6).tolist(), resamples=1)
    return math.nan if found is None else found.value
