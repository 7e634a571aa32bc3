"""What an anchor is worth: merges, and merges that the finetune at uniform weights corrects.

    python studies/anchors.py studies/mnist/optimize.py studies/mnist/results

Reads truth.csv of the folder (see `families.py`), makes task runs, posteriors and the finetune at
uniform weights of a seed that no truth has, previews all interior weights of the table, and
writes `anchors.csv` (the previews) and `anchors.md` beside it. Uniform weights are previewed, too,
but not judged. Each row is a way to share the correction out (see `Anchor`): `none` leaves merges
as they are, `root` is the package's choice, sqrt(T^T prod a), `product` is T^T prod a, `kriging L`
the weight that a Gaussian kernel of length L gives uniform weights beside the tasks alone, which
have nothing to correct. "+ metrics" rows add to the metrics what the preview at uniform weights
still misses of its truth, by the share `root`.

Columns: the mean absolute error of the metrics; Spearman's rank correlation of each task's metric;
in brackets what previews know beyond its own weight (`beyond_own_weight`); rank correlation and
regret (the best truth less the truth at the best preview) of the mean and of the worst.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt
import typer

from optuna_merge.commands import Debug, Definition, guarded, load_definition
from optuna_merge.definition import StudyDefinition
from optuna_merge.fitting import fit
from optuna_merge.previews import Anchor, anchor_share
from optuna_merge.trials import uniform_weights
from studies.families import parse_family, preview_settings
from studies.flags import Workdir, listed, workdir_of
from studies.preview_quality import (
    ANCHORED,
    FINETUNE,
    last_rungs,
    read_points,
    spearman,
    write_csv,
)
from studies.simple_rules import beyond_own_weight

Array = npt.NDArray[np.float64]
Share = Callable[[Iterable[float]], float]
Found = dict[str, tuple[Array, Array, float]]
"""By share: metrics at the weights, those at uniform weights, and the median seconds of each."""

SEED = 100
"""Of task runs and anchor; the truths of the tables have smaller ones."""

NOTHING = "none"


def product(weights: Iterable[float]) -> float:
    """T^T prod a: the square of what the product takes."""
    return anchor_share(weights) ** 2


def kriging(length: float) -> Share:
    """The weight of uniform weights beside the tasks alone, by a Gaussian kernel."""

    def share(weights: Iterable[float]) -> float:
        point = np.array(list(weights))
        known = np.vstack([np.full(len(point), 1 / len(point)), np.eye(len(point))])
        near = [
            np.exp(-0.5 * np.square(known[:, None] - at).sum(-1) / length**2)
            for at in (known, point[None])
        ]
        return float(np.linalg.solve(near[0] + 1e-9 * np.eye(len(known)), near[1])[0, 0])

    return share


SHARES: dict[str, Share] = {
    "root": anchor_share,
    "product": product,
    "kriging .2": kriging(0.2),
    "kriging .35": kriging(0.35),
}


@dataclass(frozen=True)
class Truths:
    """Whole finetunes at interior weights, but for uniform ones.

    Attributes:
        weights: `n x T`.
        metrics: `seeds x n x T`.
        uniform: At uniform weights, the mean over seeds; `T`.
    """

    weights: Array
    metrics: Array
    uniform: Array

    @classmethod
    def read(cls, folder: Path) -> Truths:
        """Those of a folder's truth.csv.

        Raises:
            ValueError: there are no uniform weights in it.
        """
        found: dict[tuple[float, ...], list[tuple[float, ...]]] = {}
        for point in last_rungs(read_points(folder / "truth.csv")[0]):
            if min(point.weights) > 0:
                found.setdefault(point.weights, []).append(point.metrics)
        even = [w for w in found if max(w) - min(w) < 1e-5]
        if not even:
            raise ValueError(f"{folder}: no finetune at uniform weights; see families.py --extend")
        uniform = np.mean(found.pop(even[0]), axis=0)
        seeds = min(map(len, found.values()))
        metrics = np.array([values[:seeds] for values in found.values()]).swapaxes(0, 1)
        return cls(np.array(list(found)), metrics, uniform)


def previews(
    definition: StudyDefinition, family: str, truths: Truths, shares: Sequence[str], workdir: Path
) -> Found:
    """The previews of one family, by each share."""
    preview = preview_settings(f"{family}{ANCHORED}", definition.preview)
    fitted = fit(
        replace(
            definition,
            posterior=replace(parse_family(family, definition.posterior), seed=SEED),
            finetuning=replace(definition.finetuning, seed=SEED),
            preview=preview,
        ),
        workdir,
        progress=False,
    )
    even = uniform_weights(fitted.names)
    run = fitted.store.find(even, fitted.definition.finetuning)
    assert run is not None, "fit made it"
    state = run.parameters()
    found: Found = {}
    for name in (NOTHING, *shares):
        anchor = None if name == NOTHING else Anchor(state, SHARES[name])
        previewer = fitted.previewer.anchored(anchor)
        rows, seconds = [], []
        for weights in (*truths.weights, tuple(even.values())):
            made = previewer(dict(zip(fitted.names, map(float, weights))))
            rows.append([made.evaluations[task].metric.value for task in fitted.names])
            seconds.append(made.seconds)
        *inside, at_uniform = rows
        found[name] = (np.array(inside), np.array(at_uniform), float(np.median(seconds)))
        # The anchor's own finetune is what is known there.
        real = np.array([run.evaluations[task].metric.value for task in fitted.names])
        missing = np.outer(
            [anchor_share(weights) for weights in truths.weights], real - found[name][1]
        )
        found[f"{name} + metrics"] = (found[name][0] + missing, real, found[name][2])
    return found


def row(name: str, seen: Array, truth: Array, weights: Array) -> list[str]:
    """One line of the table."""
    tasks = [
        f"{spearman(seen[:, t].tolist(), truth[:, t].tolist()):.2f} "
        f"({beyond_own_weight(seen[:, t], truth[:, t], weights[:, t]):.2f})"
        for t in range(weights.shape[1])
    ]
    scores = []
    for mine, real in ((seen.mean(1), truth.mean(1)), (seen.min(1), truth.min(1))):
        regret = real.max() - real[mine.argmax()]
        scores.append(f"{spearman(mine.tolist(), real.tolist()):.2f} ({regret:.4f})")
    return [name, f"{np.abs(seen - truth).mean():.4f}", *tasks, *scores]


def table(
    truths: Truths,
    families: dict[str, Found],
    names: Sequence[str],
) -> str:
    """The rows as Markdown, that of another finetune first."""
    mean = truths.metrics.mean(0)
    lines = [["", "error", *names, "mean", "worst"]]
    if len(truths.metrics) > 1:
        others = np.delete(truths.metrics, 0, 0).mean(0)
        lines.append(row(FINETUNE, truths.metrics[0], others, truths.weights))
    for family, kinds in families.items():
        for kind, (seen, _, _) in kinds.items():
            lines.append(row(f"{family}, {kind}", seen, mean, truths.weights))
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def write(
    path: Path,
    truths: Truths,
    families: dict[str, Found],
    names: Sequence[str],
) -> None:
    """All previews as CSV."""
    head = ["family", "share", *(f"weight_{n}" for n in names), *(f"metric_{n}" for n in names)]
    even = np.full(len(names), 1 / len(names))
    rows: list[list[object]] = [[*head, "seconds"]]
    for family, kinds in families.items():
        for kind, (seen, uniform, seconds) in kinds.items():
            for weights, metrics in zip([*truths.weights, even], [*seen, uniform]):
                numbers = [f"{x:.7g}" for x in (*weights, *metrics)]
                rows.append([family, kind, *numbers, f"{seconds:.3g}"])
    write_csv(path, rows)


def main(
    definition: Definition,
    results: Annotated[Path, typer.Argument(help="Folder with truth.csv; the tables go there.")],
    families: Annotated[str, typer.Option(help="Separated by commas.")] = "diagonal+heads",
    shares: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join(SHARES),
    workdir: Workdir = None,
    debug: Debug = False,
) -> None:
    """Compare merges with anchored merges."""

    def work() -> None:
        found = load_definition(definition)
        truths = Truths.read(results)
        folder = workdir_of(definition, workdir)
        made = {
            family: previews(found, family, truths, listed(shares), folder)
            for family in listed(families)
        }
        write(results / "anchors.csv", truths, made, found.names)
        text = table(truths, made, found.names)
        (results / "anchors.md").write_text(text, encoding="utf-8")
        typer.echo(text)

    guarded(debug, work)


if __name__ == "__main__":
    typer.run(main)
