"""What the tables of the mixture study say, as Markdown.

    python studies/mixture/tables.py

Reads truth.csv, test.csv and previews.csv of `results` beside this file (see `truths.py`) and
writes `tables.md` there. Truths are the finetunes of seed 0; previews, curve and doubling rule
have seen seed 1 only.

The first table: errors of the losses, and Spearman's rank correlation of each task's loss, of the
mean of the losses, and the mean of the tasks' correlations, with 90 % bootstrap intervals over the
weightings; at weights of all tasks, and at all that were drawn at random (those in proportion to
the data among them; uniform weights and the tasks alone are known, and left out). "another
finetune" is the second seed, where there is one. Below it, correlations less those of averaging on
the same resamples.

The second table: what previews know beyond each task's own weight (`beyond_own_weight`), and the
share of the truths' variance that own weight explains.

The third table: regrets on validation and on test data, of losses, of what each rule chooses among
the drawn weights, uniform ones and the tasks alone; of all truths the best on the same data has
none. The doubling rule makes its own weights. The last table has the best weights themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import numpy.typing as npt
import typer

from optuna_merge.calibration._estimates import LEVEL, RESAMPLES, bootstrap_counts, spearman
from studies.mixture.optimize import EXAMPLES
from studies.mixture.truths import CHOOSING
from studies.mixture.weights import drawn_weights, fixed_weights
from studies.preview_quality import FINETUNE, Point, Weights, as_written, last_rungs, read_points
from studies.simple_rules import beyond_own_weight, explained_by_own_weight, own_weight_curves

Array = npt.NDArray[np.float64]
Losses = dict[Weights, Array]
"""Losses of all tasks by weights."""

AVERAGING = "isotropic"
CURVE = "own-weight curve"


def by_weights(points: Sequence[Point], seed: int) -> Losses:
    """The losses at the end of the finetunes of a seed, or of previews."""
    return {p.weights: np.array(p.losses) for p in points if p.seed == seed}


@dataclass(frozen=True)
class Tables:
    """All that is known.

    Attributes:
        names: Tasks in order.
        truths: On validation data, by seed.
        tests: On test data, by seed.
        previews: By family.
        drawn: The random weights and those in proportion to the data.
    """

    names: list[str]
    truths: dict[int, Losses]
    tests: dict[int, Losses]
    previews: dict[str, Losses]
    drawn: list[Weights]

    @classmethod
    def read(cls, folder: Path) -> Tables:
        """From the folder's files."""
        points, names = read_points(folder / "truth.csv")
        tested, _ = read_points(folder / "test.csv")
        made, _ = read_points(folder / "previews.csv")
        families = dict.fromkeys(p.family for p in made)
        ends = last_rungs(points)
        known = by_weights(ends, 0)
        wanted = {
            as_written(w)
            for w in (fixed_weights(names, EXAMPLES)[-1], *drawn_weights(names, 99, 99))
        }
        return cls(
            names,
            {seed: by_weights(ends, seed) for seed in (0, CHOOSING)},
            {seed: by_weights(tested, seed) for seed in (0, CHOOSING)},
            {f: by_weights([p for p in made if p.family == f], CHOOSING) for f in families},
            [w for w in known if as_written(w) in wanted],
        )

    @property
    def fixed(self) -> list[Weights]:
        """Uniform weights and each task alone, as the tables have them."""
        wanted = [as_written(w) for w in fixed_weights(self.names, EXAMPLES)[:-1]]
        return sorted(
            (w for w in self.truths[0] if as_written(w) in wanted),
            key=lambda w: wanted.index(as_written(w)),
        )

    def curve(self, weights: Sequence[Weights]) -> Array:
        """The own-weight curve's losses."""
        uniform, *alone = (self.truths[CHOOSING][w] for w in self.fixed)
        return own_weight_curves(np.array(alone), uniform, np.array(weights))


@dataclass(frozen=True)
class Ranks:
    """Correlations on bootstrap resamples, the first row those of all weightings: `B x (T + 2)`.

    The columns are the tasks, the mean of the losses, and the mean of the tasks' correlations.
    """

    values: Array

    @classmethod
    def of(cls, seen: Array, truth: Array, resamples: int = RESAMPLES) -> Ranks:
        """Of predicted and true losses, `n x T`."""
        n = len(truth)
        counts = np.concatenate([np.ones((1, n)), bootstrap_counts(n, resamples, 0)])
        pairs = [*zip(seen.T, truth.T), (seen.mean(1), truth.mean(1))]
        columns = [spearman(x, y, counts) for x, y in pairs]
        return cls(np.stack([*columns, np.mean(columns[:-1], axis=0)], axis=1))

    def cells(self) -> list[str]:
        """Values with intervals."""
        low, high = np.nanquantile(self.values[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        return [f"{v:.3f} ({a:.3f}, {b:.3f})" for v, a, b in zip(self.values[0], low, high)]

    def less(self, other: Ranks) -> Ranks:
        """The differences, resample by resample."""
        return Ranks(self.values - other.values)


def ranks_table(tables: Tables, weights: Sequence[Weights], place: str) -> list[str]:
    """The first table, at some of the drawn weights."""
    truth = np.array([tables.truths[0][w] for w in weights])
    head = [f"{place}, {len(weights)} weightings", "error", "bias", *tables.names]
    lines = [line([*head, "mean loss", "mean of tasks"]), line(["---"] * (len(head) + 2))]
    again = [w for w in weights if w in tables.truths[CHOOSING]]
    if len(again) > 4:
        seen = np.array([tables.truths[CHOOSING][w] for w in again])
        real = np.array([tables.truths[0][w] for w in again])
        lines.append(
            line(
                [f"{FINETUNE} ({len(again)})", *errors(seen, real), *Ranks.of(seen, real).cells()]
            )
        )
    found: dict[str, Ranks] = {}
    predicted = {f: np.array([known[w] for w in weights]) for f, known in tables.previews.items()}
    predicted[CURVE] = tables.curve(weights)
    for name, seen in predicted.items():
        found[name] = Ranks.of(seen, truth)
        lines.append(line([name, *errors(seen, truth), *found[name].cells()]))
    for name, ranks in found.items():
        if name != AVERAGING:
            cells = ranks.less(found[AVERAGING]).cells()
            lines.append(line([f"{name} less averaging", "", "", *cells]))
    return lines


def errors(seen: Array, truth: Array) -> list[str]:
    """Mean absolute error and mean of the differences."""
    return [f"{np.abs(seen - truth).mean():.4f}", f"{(seen - truth).mean():+.4f}"]


def beyond_table(tables: Tables) -> list[str]:
    """The second table, at all drawn weights."""
    weights = np.array(tables.drawn)
    truth = np.array([tables.truths[0][w] for w in tables.drawn])
    lines = [line(["beyond own weight", *tables.names]), line(["---"] * (len(tables.names) + 1))]
    tasks = range(len(tables.names))
    own = [explained_by_own_weight(truth[:, t], weights[:, t]) for t in tasks]
    lines.append(line(["variance that own weight explains", *(f"{x:.3f}" for x in own)]))
    for family, known in tables.previews.items():
        seen = np.array([known[w] for w in tables.drawn])
        cells = [beyond_own_weight(seen[:, t], truth[:, t], weights[:, t]) for t in tasks]
        lines.append(line([family, *(f"{x:.2f}" for x in cells)]))
    return lines


def scores(tables: Tables) -> dict[str, Callable[[Array, Array], Array]]:
    """By name, from losses `n x T` and losses alone `T` to scores, smaller is better."""
    italian = tables.names.index("italian")
    return {
        "mean": lambda losses, alone: losses.mean(1),
        "worst excess": lambda losses, alone: (losses - alone).max(1),
        "target: italian": lambda losses, alone: losses[:, italian],
    }


def regret_table(tables: Tables) -> list[str]:
    """The third table."""
    names = list(scores(tables))
    head = ["regret, validation / test", *names]
    rows: dict[str, list[str]] = {}
    noise, spread = [], []
    for score in scores(tables).values():
        for rule, cell in regrets(tables, score).items():
            rows.setdefault(rule, []).append(cell)
        noise.append(f"{noise_of(tables, score):.4f}")
        values = score_of(tables, tables.truths[0], tables.drawn, score)
        spread.append(f"{values.std(ddof=1):.4f}")
    lines = [line(head), line(["---"] * len(head))]
    lines += [
        line(["noise of a finetune", *noise]),
        line(["standard deviation over weights", *spread]),
    ]
    return lines + [line([rule, *cells]) for rule, cells in rows.items()]


Judged = Callable[[Array, Array], Array]


def score_of(tables: Tables, known: Losses, weights: Sequence[Weights], score: Judged) -> Array:
    """The scores of what is known at the weights, beside the tasks alone of the same."""
    alone = np.array([known[w] for w in tables.fixed[1:]]).diagonal()
    return score(np.array([known[w] for w in weights]), alone)


def noise_of(tables: Tables, score: Judged) -> float:
    """Standard deviation of one finetune's score between seeds, at the weights that have two."""
    again = [w for w in (*tables.drawn, tables.fixed[0]) if w in tables.truths[CHOOSING]]
    pair = [score_of(tables, tables.truths[seed], again, score) for seed in (0, CHOOSING)]
    return float(np.sqrt(np.square(pair[0] - pair[1]).mean() / 2))


def regrets(tables: Tables, score: Judged) -> dict[str, str]:
    """By rule, what its choice loses on validation and on test data of seed 0."""
    choices = [*tables.fixed, *tables.drawn]
    chosen: dict[str, Weights] = {}
    alone = np.array([tables.truths[CHOOSING][w] for w in tables.fixed[1:]]).diagonal()
    for family, known in tables.previews.items():
        values = score(np.array([known[w] for w in choices]), alone)
        chosen[family] = choices[int(values.argmin())]
    chosen[CURVE] = choices[int(score(tables.curve(choices), alone).argmin())]
    chosen["uniform"] = tables.fixed[0]
    chosen["proportional to data"] = tables.drawn[place_of_proportional(tables)]
    doubled = [w for w in tables.truths[CHOOSING] if w in tables.truths[0] and w not in choices]
    if doubled:
        seen = [tables.fixed[0], *doubled]
        values = score_of(tables, tables.truths[CHOOSING], seen, score)
        chosen[f"doubling rules, best of {len(seen)} finetunes"] = seen[int(values.argmin())]
    every = list(tables.truths[0])
    cells: dict[str, list[str]] = {}
    for known in (tables.truths[0], tables.tests[0]):
        best = score_of(tables, known, every, score).min()
        for rule, weights in chosen.items():
            value = score_of(tables, known, [weights], score)[0]
            cells.setdefault(rule, []).append(f"{value - best:.4f}")
        mean = score_of(tables, known, choices, score).mean() - best
        cells.setdefault("random", []).append(f"{mean:.4f}")
    return {rule: " / ".join(pair) for rule, pair in cells.items()}


def best_table(tables: Tables) -> list[str]:
    """Where each score is best among the finetunes of seed 0, on validation data."""
    lines = [line(["best", "score", *tables.names]), line(["---"] * (len(tables.names) + 2))]
    every = list(tables.truths[0])
    for name, score in scores(tables).items():
        values = score_of(tables, tables.truths[0], every, score)
        best = int(values.argmin())
        cells = [f"{w:.2f}" for w in every[best]]
        lines.append(line([name, f"{values[best]:.4f}", *cells]))
    return lines


def place_of_proportional(tables: Tables) -> int:
    """Where among the drawn weights those in proportion to the data are."""
    wanted = as_written(fixed_weights(tables.names, EXAMPLES)[-1])
    return [as_written(w) for w in tables.drawn].index(wanted)


def line(cells: Sequence[str]) -> str:
    """A row in Markdown."""
    return f"| {' | '.join(cells)} |"


def report(tables: Tables) -> str:
    """All tables."""
    inside = [w for w in tables.drawn if min(w) > 0]
    parts = [
        ranks_table(tables, inside, "weights of all tasks"),
        ranks_table(tables, tables.drawn, "all"),
        beyond_table(tables),
        regret_table(tables),
        best_table(tables),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def main(
    results: Annotated[Path, typer.Option(help="Folder of the tables.")] = (
        Path(__file__).parent / "results"
    ),
) -> None:
    """Write and print the tables."""
    text = report(Tables.read(results))
    (results / "tables.md").write_text(text, encoding="utf-8")
    typer.echo(text)


if __name__ == "__main__":
    typer.run(main)
