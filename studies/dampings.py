"""Should the damping be chosen as previews are used? Previews by damping, and each rule's choice.

    python studies/dampings.py studies/groups/optimize.py studies/groups/results

Reads truth.csv of the folder (see `families.py`), makes task runs, their diagonal posteriors and
the finetune at uniform weights of seeds that no truth has, and for each damping that a study tries
previews all interior weights of the table, heads and anchor as the study has them. Writes
dampings.csv (the previews) and dampings.md beside it. The damping is a multiple of the mean
curvature.

Three rules take the damping with the smallest weighted loss on validation data, mean over
`trial_weightings`: "chosen on merges" is the package's, without anchor and with merged heads;
"anchored merges" have the anchor; "previews" have anchor and heads as the study has them. Columns
as in `shares.py`, means over the seeds of the runs. Previews stay in the working folder: the
command, started again, goes on from there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import typer
from torch import Tensor

from optuna_merge._base.files import short_hash, write_json
from optuna_merge.commands import Debug, Definition, guarded, load_definition
from optuna_merge.definition import StudyDefinition
from optuna_merge.fitting._damping import MULTIPLES, candidates, trial_weightings
from optuna_merge.posteriors import Posterior
from optuna_merge.previews import Anchor, Previewer, PreviewSettings
from studies.anchors import SEED, Array, Truths
from studies.families import fit_family
from studies.flags import Seeds, Targets, Workdir, listed, workdir_of
from studies.mixed_runs import Recipe, Runs
from studies.preview_quality import write_csv
from studies.shares import Line, judged, scores_of, table, uniform_truth

RULES = ("merges", "anchored merges", "previews")


@dataclass(frozen=True)
class Damped:
    """One damping.

    Attributes:
        losses: By rule, what the rule takes the smallest of.
        metrics: Of the previews at the table's weights, `n x T`.
    """

    losses: dict[str, float]
    metrics: Array


def weighted_loss(previewer: Previewer, names: Sequence[str]) -> float:
    """What the choice of a damping goes by; infinite where a merge overflows."""
    rows = []
    for weights in trial_weightings(names):
        found = previewer(weights).evaluations
        rows.append(sum(weight * found[task].loss.value for task, weight in weights.items()))
    return float(np.mean(rows)) if np.isfinite(rows).all() else np.inf


def damped_at(
    runs: Runs,
    posteriors: Mapping[str, Posterior],
    settings: PreviewSettings,
    truth: Mapping[str, Tensor],
    weights: Array,
) -> Damped:
    """The previews of posteriors with one damping.

    Args:
        runs: The task runs.
        posteriors: Of these.
        settings: The study's, of previews.
        truth: The finetune at uniform weights, which corrects previews.
        weights: Where, `n x T`.
    """
    names = runs.fitted.names
    limit = runs.fitted.definition.posterior.damping_examples
    settings = replace(settings, anchor="none")  # it is given

    def used() -> dict[str, object]:
        # An anchor measures what a merge misses once: each previewer has its own.
        return {"settings": settings, "states": runs.states, "anchor": Anchor(truth)}

    ways: list[dict[str, object]] = [{}, {"anchor": Anchor(truth)}, used()]
    losses = {
        rule: weighted_loss(runs.previewer(posteriors, limit=limit, **how), names)
        for rule, how in zip(RULES, ways)
    }
    previewer, rows = runs.previewer(posteriors, **used()), []
    for row in weights.tolist():
        found = previewer(dict(zip(names, row))).evaluations
        rows.append([found[task].metric.value for task in names])
    return Damped(losses, np.array(rows))


def all_damped(
    definition: StudyDefinition, weights: Array, seed: int, workdir: Path
) -> dict[float, Damped]:
    """By multiple of the mean curvature, from the working folder what is there."""
    fitted, _ = fit_family(definition, "isotropic", seed, workdir)
    key = short_hash([fitted.fingerprint, definition.preview.describe(), weights.tolist()])
    folder = workdir / "dampings"
    folder.mkdir(exist_ok=True)
    paths = {multiple: folder / f"{key}-{multiple:g}.json" for multiple in MULTIPLES}
    if not all(path.is_file() for path in paths.values()):
        truth = uniform_truth(fitted)
        runs = Runs.make(fitted, Recipe())
        undamped = runs.undamped("diagonal")
        for (multiple, path), value in zip(paths.items(), candidates(undamped)):
            if not path.is_file():
                posteriors = {task: p.damped(value) for task, p in undamped.items()}
                made = damped_at(runs, posteriors, definition.preview, truth, weights)
                write_json(path, {"losses": made.losses, "metrics": made.metrics.tolist()})
            typer.echo(f"seed {seed}, damping {multiple:g}: {value:.3g}", err=True)
    found = {m: json.loads(path.read_text(encoding="utf-8")) for m, path in paths.items()}
    return {m: Damped(f["losses"], np.array(f["metrics"])) for m, f in found.items()}


def taken(found: Mapping[float, Damped]) -> dict[str, float]:
    """What each rule takes; of equal losses the largest damping."""
    return {rule: min(found, key=lambda m: (found[m].losses[rule], -m)) for rule in RULES}


def compare(
    definition: StudyDefinition,
    results: Path,
    workdir: Path,
    seeds: int,
    targets: Sequence[str],
) -> str:
    """Make everything and write the files; the table."""
    truths, names = Truths.read(results), list(definition.names)
    sign = 1.0 if all(definition.greater_is_better.values()) else -1.0
    scores = scores_of(names, targets)
    lines: dict[tuple[str, ...], list[Line]] = {}
    head = ["damping", "seed", *RULES]
    rows: list[list[object]] = [
        [*head, *(f"weight_{n}" for n in names), *(f"metric_{n}" for n in names)]
    ]
    for seed in range(SEED, SEED + seeds):
        found = all_damped(definition, truths.weights, seed, workdir)
        for multiple, damped in found.items():
            line = judged(damped.metrics, truths, scores, sign)
            lines.setdefault((f"{multiple:g}",), []).append(line)
            losses = [f"{damped.losses[rule]:.7g}" for rule in RULES]
            for weights, metrics in zip(truths.weights, damped.metrics):
                numbers = [f"{x:.7g}" for x in (*weights, *metrics)]
                rows.append([f"{multiple:g}", seed, *losses, *numbers])
        for rule, multiple in taken(found).items():
            line = judged(found[multiple].metrics, truths, scores, sign)
            lines.setdefault((f"chosen on {rule}",), []).append(line)
    write_csv(results / "dampings.csv", rows)
    ordered = sorted(lines.items(), key=lambda item: item[0][0].startswith("chosen"))
    text = table(dict(ordered), ["damping", "error", *names, *scores])
    (results / "dampings.md").write_text(text, encoding="utf-8")
    return text


def main(
    definition: Definition,
    results: Annotated[Path, typer.Argument(help="Folder with truth.csv; the tables go there.")],
    seeds: Seeds = 3,
    targets: Targets = "",
    workdir: Workdir = None,
    debug: Debug = False,
) -> None:
    """Compare previews by their damping."""

    def work() -> None:
        folder = workdir_of(definition, workdir)
        found = load_definition(definition)
        typer.echo(compare(found, results, folder, seeds, listed(targets)))

    guarded(debug, work)


if __name__ == "__main__":
    typer.run(main)
