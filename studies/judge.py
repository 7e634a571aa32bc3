"""What studies' tables say about their previews, as Markdown: task by task, then score by score.

    python studies/judge.py studies/mnist/results studies/fashion/results/tenths

Reads truth.csv, previews.csv and run.json (see `families.py`). Only interior weights count. The
first table has a row for each kind of previews: the share of a finetune's steps, errors as in
`preview_quality`, then Spearman's rank correlation of each task's metric with the truth: the mean
over posterior seeds, with a 90 % bootstrap interval over the weightings. "stopped" rows are the
truths themselves at an earlier rung: what stopping the very same finetunes early is worth.

The second table says what previews know beyond each task's own weight: the partial correlation of
previews and truths given it (`beyond_own_weight`). Its first row is the share of the truths'
variance that a smooth function of own weight explains, for which nobody needs a preview; the
second the standard deviation of what it leaves, less the part of chance, in units of the noise of
one finetune.

The third table has a column for each score. It varies by the standard deviation of the truths
(means over seeds) between weightings; its noise is that of one finetune between seeds. Then the
regret of each kind of previews, the mean over posterior seeds: the best truth less the truth at
the weights whose previews score best; in brackets the rank correlation of the score. "random"
weights have the mean of all. What chooses by finetunes sees one seed and is judged by the others:
"another finetune" chooses among all weights; the doubling rule doubles the weight of the worst
task (of a target its own) from uniform weights on and keeps the best of so many finetunes; the
own-weight curve has seen each task alone and uniform weights only (`studies/simple_rules.py`). The
best of noisy truths is too good by chance: not more than a regret of about the noise can be hoped
for. Scores relative to the tasks alone are judged where the truths have these.

The fourth table says how many previews it takes: the same regret, where only so many weightings
drawn at random are previewed, by the merges of the lowest error, expected over the draws.

Where test.csv stands beside truth.csv (`on_test.py`), the third table is there once more, what is
chosen on validation data being judged on test data.

Of several folders there is a last table: regrets in units of the noise, the mean over the scores
of all folders with its standard error, for what all of them have.
"""

from __future__ import annotations

import json
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
from optuna_merge.commands import Debug, guarded
from optuna_merge.goals import Score, make_score
from studies.preview_quality import FINETUNE, Point, Quality, last_rungs, qualities, read_points
from studies.simple_rules import (
    beyond_own_weight,
    doubled,
    explained_by_own_weight,
    own_weight_curves,
    proportional,
)

Array = npt.NDArray[np.float64]

RANDOM, UNIFORM = "random", "uniform"
PROPORTIONAL = "proportional to data"
DOUBLING, CURVE = "doubling rule, {count} finetunes", "own-weight curve"
DOUBLINGS = (3, 4, 6)
"""Finetunes of the doubling rule, the one at uniform weights among them."""
BEST_MERGE = "best merge"
COUNTS = (1, 3, 5, 10, 20)
"""Numbers of previews in the third table, as far as there are so many."""


@dataclass(frozen=True)
class ScoreRow:
    """A score of the truths, and what choosing by previews loses of it.

    Attributes:
        name: As `make_score` names it.
        variation: Standard deviation of the truths between weightings.
        noise: Standard deviation of a truth between seeds; NaN with one seed.
        regrets: By kind of previews, by `FINETUNE`, `RANDOM`, `UNIFORM` and the simple rules,
            as far as the tables have what these need.
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


@dataclass(frozen=True)
class Truths:
    """The ends of finetunes as arrays; sequences are in the order of the tasks.

    Attributes:
        weights: Interior weights, `n x T`.
        metrics: `seeds x n x T`.
        corners: Of the tasks alone, `seeds x T x T`; None without them.
        uniform: At uniform weights, `seeds x T`; None without them.
    """

    weights: Array
    metrics: Array
    corners: Array | None
    uniform: Array | None

    @classmethod
    def of(cls, truths: Sequence[Point]) -> Truths:
        (by_seed,) = inside(truths).values()
        weights = np.array([p.weights for p in next(iter(by_seed.values()))])
        metrics = np.array([[p.metrics for p in points] for points in by_seed.values()])
        corners = [
            [t.metrics for seed in by_seed for t in truths if t.seed == seed and t.weights[i] == 1]
            for i in range(weights.shape[1])
        ]
        there = all(len(found) == len(by_seed) for found in corners)
        near = np.flatnonzero(np.abs(weights - 1 / weights.shape[1]).max(1) < 1e-6)
        return cls(
            weights,
            metrics,
            np.array(corners).transpose(1, 0, 2) if there else None,
            metrics[:, near[0]] if len(near) else None,
        )

    def nearest(self, weights: Sequence[float]) -> int:
        return int(np.square(self.weights - np.array(weights)).sum(1).argmin())


def judge_score(
    score: Score,
    alone: Mapping[str, float],
    truths: Sequence[Point],
    previews: Sequence[Point],
    examples: Sequence[int] = (),
    tests: Sequence[Point] = (),
) -> ScoreRow:
    """One score's row.

    Args:
        score: What is judged.
        alone: Each task's metric in the run on that task only.
        truths: Last rungs.
        previews: All kinds of them.
        examples: Training examples of each task, if these are known.
        tests: The same finetunes on test data, if what is chosen is to be judged there.
    """
    ends = Truths.of(truths)
    sign = 1.0 if score.maximize else -1.0  # so that more is better
    each = sign * score.over(ends.metrics, alone)
    chosen = _chosen_by_finetunes(score, alone, ends, each) if len(each) > 1 else {}
    if tests:
        on_test = alone_of(tests, list(alone)) or alone
        each = sign * score.over(Truths.of(tests).metrics, on_test)
    expected = each.mean(0)
    best = expected.max()
    regrets = {RANDOM: float(best - expected.mean())}
    if ends.uniform is not None:
        equal = ends.nearest([1 / ends.weights.shape[1]] * ends.weights.shape[1])
        regrets[UNIFORM] = float(best - expected[equal])
    if len(set(examples)) > 1:
        regrets[PROPORTIONAL] = float(best - expected[ends.nearest(proportional(examples))])
    for name, places in chosen.items():
        others = [np.delete(each, seed, 0).mean(0)[place] for seed, place in places.items()]
        regrets[name] = float(best - np.mean(others))
    correlations = {}
    for kind, found in _stacked(inside(previews)).items():
        scores = [sign * score.over(metrics, alone) for metrics in found]
        regrets[kind] = float(np.mean([best - expected[s.argmax()] for s in scores]))
        estimate = _correlation(scores, expected)
        correlations[kind] = math.nan if estimate is None else estimate.value
    noise = float(np.sqrt(each.var(0, ddof=1).mean())) if len(each) > 1 else math.nan
    return ScoreRow(score.name, float(expected.std(ddof=1)), noise, regrets, correlations)


def _chosen_by_finetunes(
    score: Score, alone: Mapping[str, float], ends: Truths, each: Array
) -> dict[str, dict[int, int]]:
    """By rule, the place of the weights that it chooses, for each seed that it may see."""
    found: dict[str, dict[int, int]] = {FINETUNE: {}}
    for seed, seen in enumerate(each):
        found[FINETUNE][seed] = int(seen.argmax())
        if ends.uniform is None:
            continue
        path = _doubling_path(score, alone, ends, seed)
        for count in DOUBLINGS:
            place = max(path[:count], key=lambda i: seen[i])
            found.setdefault(DOUBLING.format(count=count), {})[seed] = place
        if ends.corners is not None:
            curves = own_weight_curves(ends.corners[seed], ends.uniform[seed], ends.weights)
            sign = 1.0 if score.maximize else -1.0
            place = int((sign * score.over(curves, alone)).argmax())
            found.setdefault(CURVE, {})[seed] = place
    return found


def _doubling_path(score: Score, alone: Mapping[str, float], ends: Truths, seed: int) -> list[int]:
    """The places that the doubling rule finetunes, the first at uniform weights."""
    n_tasks = ends.weights.shape[1]
    weights, path = [1 / n_tasks] * n_tasks, []
    for _ in range(max(DOUBLINGS)):
        path.append(ends.nearest(weights))
        metrics = ends.metrics[seed, path[-1]]
        weights = doubled(weights, worst_task(score.name, metrics, list(alone.values()), [*alone]))
    return path


def worst_task(
    score: str,
    metrics: Array,
    alone: Sequence[float] | None,
    tasks: Sequence[str],
    *,
    greater_is_better: bool = True,
) -> int:
    """Which task's weight the doubling rule doubles: the target, or the worst by the score."""
    if score.startswith("target:"):
        return list(tasks).index(score.removeprefix("target:"))
    values = metrics / np.array(alone) if "relative" in score and alone else metrics
    return int(np.argmin(values) if greater_is_better else np.argmax(values))


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


def beyond_table(
    truths: Sequence[Point], previews: Sequence[Point], tasks: Sequence[str]
) -> list[str]:
    """What previews know of each task beyond its own weight."""
    ends = Truths.of(truths)
    expected = ends.metrics.mean(0)
    columns = list(zip(expected.T, ends.weights.T))
    lines = _head(["beyond own weight", *tasks])
    explained = [explained_by_own_weight(*column) for column in columns]
    lines.append(_line(["explained by own weight", *(f"{x:.0%}" for x in explained)]))
    if len(ends.metrics) > 1:
        noise = np.sqrt(ends.metrics.var(0, ddof=1).mean(0))
        rest = expected.var(0, ddof=1) * (1 - np.array(explained))
        rest = np.sqrt(np.maximum(rest - noise**2 / len(ends.metrics), 0))  # less what is chance
        moved = np.divide(rest, noise, out=np.full(len(noise), math.nan), where=noise > 0)
        lines.append(_line(["moved by others, in noises", *(_number(x, 1) for x in moved)]))
    kinds = {}
    if len(ends.metrics) > 1:
        rounds = [
            (mine, np.delete(ends.metrics, seed, 0).mean(0))
            for seed, mine in enumerate(ends.metrics)
        ]
        kinds[FINETUNE] = rounds
    for kind, found in _stacked(inside(previews)).items():
        kinds[kind] = [(metrics, expected) for metrics in found]
    for kind, rounds in kinds.items():
        values = [
            np.mean(
                [
                    beyond_own_weight(mine[:, i], truth[:, i], ends.weights[:, i])
                    for mine, truth in rounds
                ]
            )
            for i in range(len(tasks))
        ]
        lines.append(_line([kind, *(_number(float(v), 2) for v in values)]))
    return lines


@dataclass(frozen=True)
class Verdict:
    """What the tables of one folder say.

    Attributes:
        text: The four tables.
        scores: A row for each score.
        best: The kind of merges of the lowest error.
    """

    text: str
    scores: Sequence[ScoreRow]
    best: str


def judge(
    truths: Sequence[Point],
    previews: Sequence[Point],
    tasks: Sequence[str],
    examples: Sequence[int] = (),
    tests: Sequence[Point] = (),
) -> Verdict:
    """All that the tables of a folder say.

    Args:
        truths: Of truth.csv.
        previews: Of previews.csv.
        tasks: Names in order.
        examples: Each task's training examples.
        tests: Of test.csv, if there is one.
    """
    previews, truths = [*previews, *stopped(truths)], last_rungs(truths)
    check_grids(truths, previews)
    rows = qualities(truths, previews)
    merges = {p.kind for p in previews if not p.steps}
    best = min((row for row in rows if row.kind in merges), key=lambda row: row.error).kind
    alone = alone_of(truths, tasks)
    scores = scores_of(tasks, relative=alone is not None)
    alone = alone or dict.fromkeys(tasks, 1.0)
    mine = [p for p in previews if p.kind == best]
    judged = [judge_score(score, alone, truths, previews, examples) for score in scores]
    lines = [
        *_task_table(rows, truths, previews, tasks),
        "",
        *beyond_table(truths, previews, tasks),
        "",
        *_score_table(judged),
        "",
        *_draws_table(best, scores, alone, truths, mine),
    ]
    if tests:
        check_grids(tests, previews)
        judges = [judge_score(s, alone, truths, previews, examples, tests) for s in scores]
        lines += ["", "On test data:", "", *_score_table(judges)]
    return Verdict("\n".join(lines), judged, best)


def summary(verdicts: Sequence[Verdict]) -> str:
    """Regret in units of the noise, mean over the scores of all folders, as Markdown.

    Single targets stand apart: of these most own weight is best nearly by definition. "best merge"
    is each folder's kind of merges with the lowest error.
    """
    rows = [
        (
            row.name.startswith("target:"),
            {k: r / row.noise for k, r in row.regrets.items()}
            | {BEST_MERGE: row.regrets[verdict.best] / row.noise},
        )
        for verdict in verdicts
        for row in verdict.scores
    ]
    groups = [[found for target, found in rows if target == which] for which in (False, True)]
    titles = [
        f"regret / noise, {len(found)} {name}"
        for found, name in zip(groups, ("means and worsts", "targets"))
    ]
    common = [name for name in rows[-1][1] if all(name in found for _, found in rows)]
    lines = _head(["", *(cell for title in titles for cell in (title, "largest"))])
    for name in common:
        cells = []
        for found in groups:
            values = np.array([row[name] for row in found])
            error = values.std(ddof=1) / math.sqrt(len(values))
            cells += [f"{_number(float(values.mean()), 2)} ± {_number(float(error), 2)}"]
            cells += [_number(float(values.max()), 2)]
        lines.append(_line([name, *cells]))
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
    results: Annotated[
        list[Path], typer.Argument(help="Folders with truth.csv, previews.csv and run.json.")
    ],
    debug: Debug = False,
) -> None:
    """Print what the tables of studies say, as Markdown.

    Example: python studies/judge.py studies/fashion/results/tenths
    """

    def work() -> None:
        verdicts = []
        for folder in results:
            truths, tasks = read_points(folder / "truth.csv")
            previews, _ = read_points(folder / "previews.csv")
            path = folder / "test.csv"
            tests = read_points(path)[0] if path.exists() else []
            verdicts.append(judge(truths, previews, tasks, _examples(folder), tests))
            title = [f"## {folder}", ""] if len(results) > 1 else []
            typer.echo("\n".join([*title, verdicts[-1].text, *title[1:]]))
        if len(verdicts) > 1:
            typer.echo(summary(verdicts))

    guarded(debug, work)


def _examples(folder: Path) -> list[int]:
    """Each task's training examples, where run.json has these."""
    path = folder / "run.json"
    about = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return list(about.get("training_examples", []))


if __name__ == "__main__":
    typer.run(main)
