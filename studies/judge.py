"""What a study's tables say about its previews, as Markdown: task by task, then score by score.

    python studies/judge.py studies/mnist/results

Reads truth.csv and previews.csv (see `families.py`). Only interior weights count. The first table
has a row for each kind of previews: the share of a finetune's steps, errors as in
`preview_quality`, then Spearman's rank correlation of each task's metric with the truth: the mean
over posterior seeds, with a 90 % bootstrap interval over the weightings. "stopped" rows are the
truths themselves at an earlier rung: what stopping the very same finetunes early is worth.

The second table has a column for each score. It varies by the standard deviation of the truths
(means over seeds) between weightings; its noise is that of one finetune between seeds. Then the
regret of each kind of previews, the mean over posterior seeds: the best truth less the truth at
the weights whose previews score best; in brackets the rank correlation of the score. "random"
weights have the mean of all, "uniform" those that are nearest to equal weights; "another finetune"
chooses by one seed and is judged by the others. The best of noisy truths is too good by chance:
not more than a regret of about the noise can be hoped for. Scores relative to the tasks alone are
judged where the truths have these.

The third table says how many previews it takes: the same regret, where only so many weightings
drawn at random are previewed, by the merges of the lowest error, expected over the draws.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt
import typer

from optuna_merge.calibration._estimates import (
    LEVEL,
    MIN_TRUTHS,
    RESAMPLES,
    Estimate,
    bootstrap_counts,
    spearman,
)
from optuna_merge.cli import Debug
from optuna_merge.commands import guarded
from optuna_merge.scores import Score, make_score
from studies.preview_quality import FINETUNE, Point, Quality, last_rungs, qualities, read_points

Array = npt.NDArray[np.float64]

RANDOM, UNIFORM = "random", "uniform"
COUNTS = (1, 3, 5, 10, 20)
"""Numbers of previews in the third table, as far as there are so many."""


@dataclass(frozen=True)
class ScoreRow:
    """A score of the truths, and what choosing by previews loses of it.

    Attributes:
        name: As `make_score` names it.
        variation: Standard deviation of the truths between weightings.
        noise: Standard deviation of a truth between seeds; NaN with one seed.
        regrets: By kind of previews, by `FINETUNE`, `RANDOM` and `UNIFORM`.
        correlations: Spearman's rank correlation of the score by kind of previews.
    """

    name: str
    variation: float
    noise: float
    regrets: Mapping[str, float]
    correlations: Mapping[str, float]

    @property
    def varies(self) -> bool:
        """Whether its truths differ by more than three times their noise."""
        return self.variation > 3 * self.noise


def inside(points: Sequence[Point]) -> dict[str, dict[int, list[Point]]]:
    """The interior points by kind and seed, each in the order of the weights."""
    found: dict[str, dict[int, list[Point]]] = {}
    for p in sorted(points, key=lambda p: p.weights):
        if min(p.weights) > 0:
            found.setdefault(p.kind, {}).setdefault(p.seed, []).append(p)
    return found


def stopped(truths: Sequence[Point]) -> list[Point]:
    """The earlier rungs of the truths, as previews of the last."""
    ends = {(t.seed, t.weights): t.rung for t in last_rungs(truths)}
    return [
        replace(t, family="none", start="stopped")
        for t in truths
        if t.rung < ends[t.seed, t.weights]
    ]


def check_grids(truths: Sequence[Point], previews: Sequence[Point]) -> None:
    """Every kind and seed must have the interior weights of the others.

    Raises:
        ValueError: one hasn't.
    """
    grids = {
        f"{kind}, seed {seed}": [p.weights for p in points]
        for found in (inside(truths), inside(previews))
        for kind, by_seed in found.items()
        for seed, points in by_seed.items()
    }
    first, *others = grids
    for name in others:
        if grids[name] != grids[first]:
            raise ValueError(f"{name} has other interior weights than {first}")


def task_correlations(
    truths: Sequence[Point], previews: Sequence[Point]
) -> dict[str, list[Estimate | None]]:
    """By kind of previews an estimate for each task; None where a side doesn't vary."""
    expected = _metrics(inside(truths))
    return {
        kind: [
            _correlation([m[:, task] for m in by_seed], expected[:, task])
            for task in range(expected.shape[1])
        ]
        for kind, by_seed in _stacked(inside(previews)).items()
    }


def judge_score(
    score: Score, alone: Mapping[str, float], truths: Sequence[Point], previews: Sequence[Point]
) -> ScoreRow:
    """One score's row; `alone` is each task's metric in the run on that task only."""
    (by_seed,) = _stacked(inside(truths)).values()
    sign = 1.0 if score.maximize else -1.0  # so that more is better
    each = sign * np.stack([score.over(metrics, alone) for metrics in by_seed])
    expected = each.mean(0)
    (of_seed,) = inside(truths).values()
    weights = np.array([p.weights for p in next(iter(of_seed.values()))])
    distance = np.abs(weights - 1 / weights.shape[1]).max(1)
    near = distance < distance.min() + 1e-9
    regrets = {
        RANDOM: float(expected.max() - expected.mean()),
        UNIFORM: float(expected.max() - expected[near].mean()),
    }
    if len(each) > 1:
        lost = []
        for seed, mine in enumerate(each):
            others = np.delete(each, seed, 0).mean(0)
            lost.append(others.max() - others[mine.argmax()])
        regrets[FINETUNE] = float(np.mean(lost))
    correlations = {}
    for kind, found in _stacked(inside(previews)).items():
        scores = [sign * score.over(metrics, alone) for metrics in found]
        regrets[kind] = float(np.mean([expected.max() - expected[s.argmax()] for s in scores]))
        estimate = _correlation(scores, expected)
        correlations[kind] = math.nan if estimate is None else estimate.value
    noise = float(np.sqrt(each.var(0, ddof=1).mean())) if len(each) > 1 else math.nan
    return ScoreRow(score.name, float(expected.std(ddof=1)), noise, regrets, correlations)


def regret_of_draws(previews: Array, truths: Array, count: int) -> float:
    """Expected regret of the best preview among `count` points, drawn without repetition."""
    order = np.argsort(-previews, kind="stable")
    total = math.comb(len(order), count)
    # The best of the draw is the point of rank r with so many ways to draw the others after it.
    ways = np.array([math.comb(len(order) - 1 - rank, count - 1) for rank in range(len(order))])
    return float(truths.max() - ways @ truths[order] / total)


def draws(
    score: Score,
    alone: Mapping[str, float],
    truths: Sequence[Point],
    previews: Sequence[Point],
    counts: Sequence[int],
) -> list[float]:
    """`regret_of_draws` of one kind of previews, mean over posterior seeds, for each count."""
    sign = 1.0 if score.maximize else -1.0
    (by_seed,) = _stacked(inside(truths)).values()
    expected = sign * np.mean([score.over(metrics, alone) for metrics in by_seed], 0)
    (found,) = _stacked(inside(previews)).values()
    scores = [sign * score.over(metrics, alone) for metrics in found]
    return [
        float(np.mean([regret_of_draws(s, expected, count) for s in scores])) for count in counts
    ]


def scores_of(tasks: Sequence[str], *, relative: bool = True) -> list[Score]:
    """The scores that are judged; those relative to the tasks alone need these."""
    names = ["mean", "worst", *(f"target:{task}" for task in tasks)]
    if relative:
        names[1:2] = ["relative", "worst", "worst_relative"]
    return [make_score(name, tasks) for name in names]


def alone_of(truths: Sequence[Point], tasks: Sequence[str]) -> dict[str, float] | None:
    """Each task's metric in the finetunes on it alone, mean over seeds; None without them."""
    found = {}
    for index, task in enumerate(tasks):
        values = [t.metrics[index] for t in truths if t.weights[index] == 1]
        if not values:
            return None
        found[task] = float(np.mean(values))
    return found


def markdown(truths: Sequence[Point], previews: Sequence[Point], tasks: Sequence[str]) -> str:
    """The three tables."""
    previews, truths = [*previews, *stopped(truths)], last_rungs(truths)
    check_grids(truths, previews)
    rows = qualities(truths, previews)
    merges = {p.kind for p in previews if not p.steps}
    best = min((row for row in rows if row.kind in merges), key=lambda row: row.error).kind
    alone = alone_of(truths, tasks)
    scores = scores_of(tasks, relative=alone is not None)
    alone = alone or dict.fromkeys(tasks, 1.0)
    mine = [p for p in previews if p.kind == best]
    lines = [
        *_task_table(rows, truths, previews, tasks),
        "",
        *_score_table([judge_score(score, alone, truths, previews) for score in scores]),
        "",
        *_draws_table(best, scores, alone, truths, mine),
    ]
    return "\n".join(lines)


def _task_table(
    rows: Sequence[Quality],
    truths: Sequence[Point],
    previews: Sequence[Point],
    tasks: Sequence[str],
) -> list[str]:
    steps = {p.kind: p.steps / truths[0].steps for p in previews} | {FINETUNE: 1.0}
    correlations = task_correlations(truths, previews)
    lines = _head(["previews", "steps", "error", "bias", "loss gap", *tasks])
    for row in rows:
        if row.kind in correlations:
            found = [_interval(estimate) for estimate in correlations[row.kind]]
        else:
            found = [_number(value, 2) for value in row.correlations[:-1]]
        error = _number(row.error, 3) + _spread(row.error_spread, 3)
        gap = _number(row.gap, 2) + _spread(row.gap_spread, 2)
        share = f"{steps[row.kind]:.0%}"
        lines.append(_line([row.kind, share, error, _number(row.bias, 3), gap, *found]))
    return lines


def _score_table(rows: Sequence[ScoreRow]) -> list[str]:
    lines = _head(["", *(row.name for row in rows)])
    lines.append(_line(["varies by", *(_number(row.variation, 4) for row in rows)]))
    lines.append(_line(["noise", *(_number(row.noise, 4) for row in rows)]))
    for kind in rows[0].regrets:
        cells = []
        for row in rows:
            ranks = f" ({_number(row.correlations[kind], 2)})" if kind in row.correlations else ""
            cells.append(_number(row.regrets[kind], 4) + ranks)
        lines.append(_line([kind, *cells]))
    return lines


def _draws_table(
    kind: str,
    scores: Sequence[Score],
    alone: Mapping[str, float],
    truths: Sequence[Point],
    previews: Sequence[Point],
) -> list[str]:
    number = len({p.weights for p in previews if min(p.weights) > 0})
    counts = [*(count for count in COUNTS if count < number), number]
    columns = [draws(score, alone, truths, previews, counts) for score in scores]
    lines = _head([f"previews, {kind}", *(score.name for score in scores)])
    for count, regrets in zip(counts, zip(*columns)):
        lines.append(_line([str(count), *(_number(regret, 4) for regret in regrets)]))
    return lines


def _metrics(found: Mapping[str, Mapping[int, Sequence[Point]]]) -> Array:
    """Truths, mean over seeds, `weightings x tasks`."""
    (by_seed,) = _stacked(found).values()
    return np.asarray(np.mean(by_seed, 0))


def _stacked(found: Mapping[str, Mapping[int, Sequence[Point]]]) -> dict[str, list[Array]]:
    """By kind, for each seed the metrics, `weightings x tasks`."""
    return {
        kind: [np.array([p.metrics for p in points]) for points in by_seed.values()]
        for kind, by_seed in found.items()
    }


def _correlation(by_seed: Sequence[Array], expected: Array) -> Estimate | None:
    """The mean over seeds, each with the same resamples of the weightings."""
    if len(expected) < MIN_TRUTHS:
        return None
    expected = np.round(expected, 6)  # equal metrics are ties
    by_seed = [np.round(x, 6) for x in by_seed]
    counts = bootstrap_counts(len(expected), RESAMPLES, 0)
    value = np.mean([spearman(x, expected, np.ones((1, len(x))))[0] for x in by_seed])
    drawn = np.mean([spearman(x, expected, counts) for x in by_seed], 0)
    drawn = drawn[np.isfinite(drawn)]
    if not np.isfinite(value) or not len(drawn):
        return None
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Estimate(float(value), float(low), float(high), len(expected))


def _interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    value, low, high = (_number(x, 2) for x in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low} to {high})"


def _number(value: float, digits: int) -> str:
    """Rounded, without the zero before the point and the sign of a zero; NaN is a dash."""
    if math.isnan(value):
        return "-"
    text = f"{value:.{digits}f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.{digits}f}"
    return text.removeprefix("-") if not text.strip("-.0") else text


def _spread(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f" ± {_number(value, digits)}"


def _head(names: Sequence[str]) -> list[str]:
    return [_line(names), "|" + "---|" * len(names)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(
    results: Annotated[Path, typer.Argument(help="Folder with truth.csv and previews.csv.")],
    debug: Debug = False,
) -> None:
    """Print what the tables of a study say, as Markdown.

    Example: python studies/judge.py studies/fashion/results
    """

    def work() -> None:
        truths, tasks = read_points(results / "truth.csv")
        previews, _ = read_points(results / "previews.csv")
        typer.echo(markdown(truths, previews, tasks))

    guarded(debug, work)


if __name__ == "__main__":
    typer.run(main)
