"""How many steps do shorter finetunes need to rank task weights as well as previews do?

    python studies/fewer_steps.py studies/film/results studies/groups/results

Reads truth.csv and previews.csv of folders (see `families.py`; rungs of the truths are needed) and
prints a table. A fidelity is judged at the weightings of all tasks but uniform ones, by Spearman's
rank correlation of each task's metric with the end of finetunes of other seeds, on average over
the tasks, and over the seeds (previews: over the sets of posteriors). The rungs of a finetune have
the schedule of the whole one, as successive halving sees them. Steps between two rungs are read
off a line in the logarithm of the steps; "more than 1": another whole finetune ranks worse.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import typer

from optuna_merge.commands import Debug, guarded
from studies.preview_quality import Point, Weights, last_rungs, read_points, spearman

HEAD = ("suite", "weightings", "previews", "a finetune's rungs", "another finetune", "steps")

Metrics = Mapping[Weights, Sequence[float]]
"""Each task's metric by weights."""


def inside(points: Sequence[Point]) -> list[Point]:
    """Those of all tasks, but for uniform weights."""
    return [p for p in points if min(p.weights) > 0 and max(p.weights) - min(p.weights) > 1e-6]


def agreement(found: Metrics, ends: Sequence[Metrics], at: Sequence[Weights]) -> float:
    """The tasks' mean rank correlation with the mean of ends, at these weightings."""
    expected = np.mean([[end[w] for w in at] for end in ends], axis=0)
    own = np.array([found[w] for w in at])
    columns = (spearman(own[:, i].tolist(), expected[:, i].tolist()) for i in range(own.shape[1]))
    return float(np.mean(list(columns)))


def steps_for(wanted: float, ranks: Mapping[float, float]) -> float:
    """The share of a finetune's steps at which rungs rank as well; infinite if none does.

    Args:
        wanted: A rank correlation.
        ranks: Rank correlations by shares of the steps, ascending.
    """
    below: tuple[float, float] | None = None
    for share, rank in ranks.items():
        if math.isnan(rank):  # it has told no weightings apart
            continue
        if rank >= wanted:
            if below is None:
                return share
            part = (wanted - below[1]) / (rank - below[1])
            return math.exp(math.log(below[0]) + part * math.log(share / below[0]))
        below = share, rank
    return math.inf


def row(folder: Path, family: str) -> list[str]:
    """The line of one folder.

    Raises:
        ValueError: it has no previews of the family, or finetunes of one seed only.
    """
    points = inside(read_points(folder / "truth.csv")[0])
    ends: dict[int, dict[Weights, Sequence[float]]] = defaultdict(dict)
    for p in last_rungs(points):
        ends[p.seed][p.weights] = p.metrics
    if len(ends) < 2:
        raise ValueError(f"{folder} has finetunes of one seed; two are needed to judge by another")
    at = sorted(set.intersection(*(set(end) for end in ends.values())))
    last = max(p.steps for p in points)
    rungs: dict[float, list[float]] = defaultdict(list)
    for seed in ends:
        others = [end for other, end in ends.items() if other != seed]
        for steps in sorted({p.steps for p in points}):
            mine = {p.weights: p.metrics for p in points if (p.seed, p.steps) == (seed, steps)}
            rungs[steps / last].append(agreement(mine, others, at))
    found = [p for p in inside(read_points(folder / "previews.csv")[0]) if p.kind == family]
    if not found:
        raise ValueError(f"{folder}/previews.csv has no previews of {family!r}")
    judged = []
    for seed in {p.seed for p in found}:
        mine = {p.weights: p.metrics for p in found if p.seed == seed}
        for without in ends:  # as many judges as a finetune has
            others = [end for other, end in ends.items() if other != without]
            judged.append(agreement(mine, others, at))
    ranks = {share: float(np.mean(each)) for share, each in rungs.items()}
    wanted = float(np.mean(judged))
    needed = steps_for(wanted, ranks)
    parts = [f"{rank:.2f} at {s:.2f}" for s, rank in list(ranks.items())[:-1]]
    cells = [f"{wanted:.2f}", ", ".join(parts), f"{ranks[1.0]:.2f}"]
    told = "more than 1" if math.isinf(needed) else f"{needed:.2f}"
    return [named(folder), str(len(at)), *cells, told]


def named(folder: Path) -> str:
    """A suite and its table: the folder without "results"."""
    return " ".join(part for part in folder.parts if part not in ("studies", "results"))


def main(
    folders: Annotated[list[Path], typer.Argument(help="Folders of tables.")],
    family: Annotated[str, typer.Option(help="Of the previews.")] = "diagonal+heads+anchor",
    debug: Debug = False,
) -> None:
    """Compare previews with the rungs of finetunes, by the ranks of task weights."""

    def work() -> None:
        typer.echo("| " + " | ".join(HEAD) + " |\n" + "| --- " * len(HEAD) + "|")
        for folder in folders:
            typer.echo("| " + " | ".join(row(folder, family)) + " |")

    guarded(debug, work)


if __name__ == "__main__":
    typer.run(main)
