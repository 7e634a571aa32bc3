"""Do other task runs make better previews? A share of all data in each, fewer steps, no decay.

    python studies/shares.py studies/film/optimize.py studies/film/results

Reads truth.csv of the folder (see `families.py`), makes the runs of each recipe with seeds that no
truth has, previews all interior weights of the table, and writes shares.csv (the previews) and
shares.md (the table) beside it. Recipes, the first of which is the package's:

    alone           each task's run is on this task alone, as a finetune is
    share E         task t's run is a finetune at the weights (1 - E) e_t + E / T
    steps 1/N       a run has one N-th of a finetune's steps
    constant rate   its learning rate does not fall to zero

and joined by " + " several of them. Shares are mapped to the wanted task weights, see
`mixed_runs.py`; rows "beyond" have negative ones where others are clipped. Anchored previews are
corrected by the finetune at uniform weights of the runs' seed. Columns as in `anchors.py`, means
over the seeds of the runs; the cost is of the T runs, in finetunes: steps, and examples that these
read. Runs and previews stay in the working folder: the command, started again, goes on from there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt
import typer
from torch import Tensor

from optuna_merge._base.files import short_hash, write_json
from optuna_merge.commands import Debug, Definition, guarded, load_definition
from optuna_merge.definition import StudyDefinition
from optuna_merge.fitting import FittedStudy
from optuna_merge.previews import Anchor, PreviewSettings
from optuna_merge.trials import uniform_weights
from studies.anchors import SEED, Truths
from studies.families import fit_family
from studies.flags import Seeds, Targets, Workdir, listed, workdir_of
from studies.mixed_runs import RECIPES, Recipe, Runs, previews
from studies.preview_quality import spearman, write_csv
from studies.simple_rules import beyond_own_weight

Array = npt.NDArray[np.float64]

BEYOND, ANCHORED = "beyond", "anchored"


def uniform_truth(fitted: FittedStudy) -> dict[str, Tensor]:
    """The parameters of the finetune at uniform weights, of the runs' seed."""
    weights = uniform_weights(fitted.names)
    settings = fitted.definition.finetuning
    return fitted.store.run(fitted.model, fitted.tasks, weights, settings).parameters()


@dataclass(frozen=True)
class Line:
    """What the previews of one recipe, family and kind of merge are worth, a seed of runs each.

    Attributes:
        error: Mean absolute error of the metrics.
        ranks: Of each task, rank correlation, and beyond own weight: `T x 2`.
        scores: Of each score, rank correlation and regret: `scores x 2`.
    """

    error: float
    ranks: Array
    scores: Array


def judged(
    seen: Array, truths: Truths, scores: Mapping[str, tuple[Array, bool]], sign: float
) -> Line:
    """What these previews are worth.

    Args:
        seen: Their metrics, `n x T`.
        truths: Of the same weights.
        scores: By name, the weights of the tasks in it, and whether it is the worst task.
        sign: 1 where more is better, -1 for losses.
    """
    truth = truths.metrics.mean(0)
    ranks = [
        (
            spearman(seen[:, t].tolist(), truth[:, t].tolist()),
            beyond_own_weight(seen[:, t], truth[:, t], truths.weights[:, t]),
        )
        for t in range(truth.shape[1])
    ]
    found = []
    for column, worst in scores.values():
        mine, real = (sign * (m if worst else m @ column) for m in (seen, truth))
        if worst:
            mine, real = mine.min(1), real.min(1)
        found.append(
            (spearman(mine.tolist(), real.tolist()), float(real.max() - real[mine.argmax()]))
        )
    return Line(float(np.abs(seen - truth).mean()), np.array(ranks), np.array(found))


def scores_of(names: Sequence[str], targets: Sequence[str]) -> dict[str, tuple[Array, bool]]:
    """The mean, the worst, and the targets, as `judged` takes them."""
    count = len(names)
    found = {"mean": (np.full(count, 1 / count), False), "worst": (np.ones(count), True)}
    for target in targets:
        found[f"target:{target}"] = (np.eye(count)[list(names).index(target)], False)
    return found


def table(lines: Mapping[tuple[str, ...], Sequence[Line]], head: Sequence[str]) -> str:
    """Markdown; after ± the standard deviation over the seeds of the runs."""
    rows = [list(head), ["---"] * len(head)]
    for labels, found in lines.items():
        cells = [*labels, _spread([line.error for line in found], 4)]
        for t in range(len(found[0].ranks)):
            rank, beyond = np.mean([line.ranks[t] for line in found], axis=0)
            cells.append(f"{rank:.2f} ({beyond:.2f})")
        for s in range(len(found[0].scores)):
            rank = _spread([float(line.scores[s, 0]) for line in found], 2)
            regret = np.mean([line.scores[s, 1] for line in found])
            cells.append(f"{rank} ({regret:.4f})")
        rows.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n"


def _spread(values: Sequence[float], digits: int) -> str:
    shown = f"{np.mean(values):.{digits}f}"
    return f"{shown} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else shown


def prices(recipe: Recipe, count: int) -> str:
    """Steps and examples of all runs, in finetunes (an example of each task a step)."""
    steps = count / recipe.shorter
    examples = steps if recipe.share else steps / count
    return f"{steps:.2g} / {examples:.2g}"


def compare(
    definition: StudyDefinition,
    results: Path,
    workdir: Path,
    recipes: Sequence[str],
    families: Sequence[str],
    seeds: int,
    targets: Sequence[str],
) -> str:
    """Make everything and write the files; the table."""
    truths, names = Truths.read(results), list(definition.names)
    sign = 1.0 if all(definition.greater_is_better.values()) else -1.0
    scores = scores_of(names, targets)
    lines: dict[tuple[str, ...], list[Line]] = {}
    head = ["recipe", "family", "seed", "merge"]
    rows: list[list[object]] = [
        [*head, *(f"weight_{n}" for n in names), *(f"metric_{n}" for n in names)]
    ]
    for seed in range(SEED, SEED + seeds):
        fitted, _ = fit_family(definition, "isotropic", seed, workdir)
        uniform = uniform_truth(fitted)
        for recipe, family in product(recipes, families):
            runs = Runs.make(fitted, Recipe.of(recipe))
            for kind in kinds_of(runs.recipe, family):
                seen = seen_at(
                    truths.weights, runs, family, kind, definition.preview, uniform, workdir
                )
                line = judged(seen, truths, scores, sign)
                labels = (recipe, prices(runs.recipe, len(names)), ", ".join([family, *kind]))
                lines.setdefault(labels, []).append(line)
                for weights, metrics in zip(truths.weights, seen):
                    numbers = [f"{x:.7g}" for x in (*weights, *metrics)]
                    rows.append([recipe, family, seed, " ".join(kind), *numbers])
                typer.echo(f"seed {seed}, {', '.join(labels)}: error {line.error:.4f}", err=True)
    write_csv(results / "shares.csv", rows)
    ordered = sorted(lines.items(), key=lambda item: list(recipes).index(item[0][0]))
    text = table(dict(ordered), ["runs", "steps / examples", "previews", "error", *names, *scores])
    (results / "shares.md").write_text(text, encoding="utf-8")
    return text


def kinds_of(recipe: Recipe, family: str) -> list[tuple[str, ...]]:
    """What kinds of merges there are."""
    found: list[tuple[str, ...]] = [(), (ANCHORED,)]
    if recipe.share and family == "isotropic":
        found += [(BEYOND,), (BEYOND, ANCHORED)]
    return found


def seen_at(
    weightings: Array,
    runs: Runs,
    family: str,
    kind: tuple[str, ...],
    settings: PreviewSettings,
    uniform: Mapping[str, Tensor],
    workdir: Path,
) -> Array:
    """Metrics of the previews, from the working folder if they are there.

    Anchored ones are corrected by the finetune at uniform weights.
    """
    made_of = [runs.fitted.fingerprint, settings.describe(), str(runs.recipe), family, kind]
    key = short_hash([*made_of, weightings.tolist()])
    path = workdir / "shares" / f"{key}.json"
    if path.is_file():
        return np.array(json.loads(path.read_text(encoding="utf-8")))
    found = previews(
        runs,
        family,
        settings,
        Anchor(uniform) if ANCHORED in kind else None,
        weightings,
        beyond=BEYOND in kind,
    )
    path.parent.mkdir(exist_ok=True)
    write_json(path, found.tolist())
    return found


def main(
    definition: Definition,
    results: Annotated[Path, typer.Argument(help="Folder with truth.csv; the tables go there.")],
    recipes: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join(RECIPES),
    families: Annotated[str, typer.Option(help="Separated by commas.")] = "isotropic,diagonal",
    seeds: Seeds = 3,
    targets: Targets = "",
    workdir: Workdir = None,
    debug: Debug = False,
) -> None:
    """Compare previews of task runs that were made in other ways."""

    def work() -> None:
        folder = workdir_of(definition, workdir)
        found = load_definition(definition)
        kinds = (listed(recipes), listed(families))
        typer.echo(compare(found, results, folder, *kinds, seeds, listed(targets)))

    guarded(debug, work)


if __name__ == "__main__":
    typer.run(main)
