"""How true the previews of each posterior family are: a table for any study's definition.

    python studies/families.py studies/digits/optimize.py --posterior-seeds 3 --rungs 3,6,12,24

Finetunes the model at a grid of task weights with several seeds (the truths), previews the same
weights with each family's posteriors, and writes truth.csv, previews.csv, cost.csv and run.json
into the folder `results` beside the definition. Finetunes, task runs and posteriors stay in the
working folder: the command, started again, goes on from there. truth.csv has a row for every rung
of a finetune, an evaluation under way on the schedule of the whole run; the truth is the last.

A family is FAMILY, or FAMILY:RUNS:RESPONSIBILITIES for a mixture; see `PosteriorSettings`. Its
posteriors are made as in a study, the damping chosen on held-out data. Posterior seed p takes the
task runs of the seeds p * RUNS, ..., p * RUNS + RUNS - 1 after the definition's own. With +heads
at its end, or +headsDECAY, the heads of its merges are solved again, with a decay of 0.1 or DECAY;
see `PreviewSettings`, whose default is 0.01 for heads that tasks share. With +anchor after that
the finetune at uniform weights, of the task runs' seed, corrects the merges.

With `--rungs` merges are also refined by so many training steps, and compared with as many steps
from the pretrained body: see `studies/ladder.py`.

With `--drawn 28,12` the weights are no grid but so many random ones inside and on faces, and those
of simple rules. Uniform weights are always among the weights, also where the grid lacks them (of
four tasks there are no quarters among sixths). With `--extend` the tables that are in the folder
stay, if they were made of the same tasks, body and settings, and only what they lack is made:
another seed, say.
"""

from __future__ import annotations

import os
import platform
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import typer

from optuna_merge._base.files import check_writable, write_json
from optuna_merge.commands import Debug, Definition, guarded, load_definition
from optuna_merge.definition import PosteriorSettings, StudyDefinition
from optuna_merge.finetuning import FinishedRun
from optuna_merge.fitting import FittedStudy, fit
from optuna_merge.previews import PreviewSettings
from studies.extension import Known
from studies.flags import Results, Workdir, listed, results_of, workdir_of
from studies.ladder import (
    Ladder,
    best_rate,
    refined_previews,
    short_finetunes,
    with_batches,
)
from studies.preview_quality import (
    ANCHORED,
    TRUTH,
    Point,
    format_qualities,
    grid,
    point,
    qualities,
    read_points,
    with_uniform,
    write_csv,
    write_points,
)
from studies.weightings import parse_drawn, scattered

FAMILIES = (
    "isotropic",
    "per_tensor",
    "diagonal",
    "low_rank",
    "kronecker",
    "isotropic:3:fixed",
    "diagonal:3:fixed",
    "diagonal:3:task",
    "diagonal:3:layer",
    "diagonal:3:coordinate",
    "kronecker:3:fixed",
)
"""What is compared if nothing else is asked for."""

RESOLVED = "+heads"

PACKAGES = ("torch", "optuna", "timm", "transformers", "datasets", "accelerate", "numpy")


@dataclass(frozen=True)
class Cost:
    """What the posteriors of one family and seed cost, task runs included."""

    family: str
    seed: int
    steps: int
    run_seconds: float
    posterior_seconds: float
    damping: float | None


def parse_family(text: str, settings: PosteriorSettings) -> PosteriorSettings:
    """The settings with the family that a flag names, heads apart.

    Raises:
        ValueError: it isn't FAMILY or FAMILY:RUNS:RESPONSIBILITIES.
    """
    family, *more = text.partition(RESOLVED)[0].partition(ANCHORED)[0].split(":")
    if not more:
        return replace(settings, family=family, components=1)
    if len(more) != 2 or not more[0].isdigit():
        raise ValueError(f"a family is FAMILY or FAMILY:RUNS:RESPONSIBILITIES, got {text!r}")
    return replace(
        settings,
        family=family,
        components=int(more[0]),
        responsibilities=more[1],  # type: ignore[arg-type]
    )


def preview_settings(text: str, settings: PreviewSettings) -> PreviewSettings:
    """The settings with heads and anchor as a flag names them."""
    merge, _, anchor = text.partition(ANCHORED)
    if anchor:
        raise ValueError(f"{ANCHORED} stands at the end, got {text!r}")
    settings = replace(settings, heads="merged", anchor="none")
    if text.endswith(ANCHORED):
        settings = replace(settings, anchor="uniform")
    if RESOLVED in merge:
        decay = float(merge.partition(RESOLVED)[2] or PreviewSettings.head_decay)
        settings = replace(settings, heads="resolved", head_decay=decay)
    return settings


def fit_family(
    definition: StudyDefinition, text: str, seed: int, workdir: Path
) -> tuple[FittedStudy, Cost]:
    """The task runs and posteriors of a family for one posterior seed."""
    settings = parse_family(text, definition.posterior)
    finetuning, preview = definition.finetuning, preview_settings(text, definition.preview)
    fitted = fit(
        replace(
            definition,
            posterior=replace(settings, seed=settings.seed + seed),
            finetuning=replace(finetuning, seed=finetuning.seed + seed * settings.components),
            preview=preview,
        ),
        workdir,
        progress=False,
    )
    cost = Cost(
        text,
        seed,
        int(fitted.costs["task_run_steps"]),
        fitted.costs["task_run_seconds"],
        fitted.costs["posterior_seconds"],
        None if fitted.damping is None else fitted.damping.value,
    )
    return fitted, cost


def find_truths(
    base: FittedStudy,
    weightings: list[dict[str, float]],
    seeds: int,
    show: bool,
    known: Known,
) -> list[Point]:
    """All rungs of real finetunes at the weights, made where the known tables lack them."""
    truths = []
    first = base.definition.finetuning.seed
    lacking = [
        (weights, seed)
        for weights in weightings
        for seed in range(first, first + seeds)
        if known.missing(TRUTH, seed, [weights])
    ]
    for done, (weights, seed) in enumerate(lacking):
        settings = replace(base.definition.finetuning, seed=seed)
        title = f"truth {done + 1}/{len(lacking)}" if show else None
        run = base.store.run(base.model, base.tasks, weights, settings, progress=title)
        truths += _truth(base, weights, seed, run)
    return known.truths(truths, weightings)


def _truth(
    base: FittedStudy, weights: dict[str, float], seed: int, run: FinishedRun
) -> list[Point]:
    """A point for each rung; seconds are the share of the run that was done by the rung."""
    return [
        point(
            TRUTH,
            seed,
            weights,
            evaluations,
            base.goal.score_of({task: evaluations[task].metric.value for task in weights}),
            rung=rung,
            steps=steps,
            seconds=run.seconds * steps / run.steps,
            start="pretrained",
        )
        for rung, (steps, evaluations) in enumerate(sorted(run.rungs.items()))
    ]


def compare(
    definition: StudyDefinition,
    workdir: Path,
    results: Path,
    families: list[str],
    divisions: int,
    seeds: int,
    posterior_seeds: int,
    interior: bool = False,
    ladder: Ladder | None = None,
    truth_rungs: tuple[int, ...] = (),
    extend: bool = False,
    drawn: tuple[int, int] = (0, 0),
) -> str:
    """Make everything, or what the tables lack; write the files, and return the tables."""
    ladder = ladder or Ladder()
    if truth_rungs:  # of the task runs, too, which are the truths of the tasks alone
        finetuning = replace(definition.finetuning, rung_steps=truth_rungs)
        definition = replace(definition, finetuning=finetuning)
    for text in (*families, *ladder.families):
        parse_family(text, definition.posterior)
        preview_settings(text, definition.preview)
    names = definition.names
    known = Known.read(results, definition) if extend else Known()
    points = with_uniform(grid(len(names), divisions))
    if any(drawn):
        sizes = [len(task.data("train")) for task in definition.tasks]
        points = scattered(sizes, inside=drawn[0], faces=drawn[1])
    points = [w for w in points if min(w) > 0 or not interior]
    weightings = [dict(zip(names, weights)) for weights in points]
    base, _ = fit_family(definition, "isotropic", 0, workdir)
    truths = find_truths(base, weightings, seeds, sys.stderr.isatty(), known)
    write_points(results / "truth.csv", truths, names)
    previews, costs = [], []
    for text in families:
        for seed in range(posterior_seeds):
            lacking = known.missing(text, seed, weightings)
            if not lacking:
                continue
            fitted, cost = fit_family(definition, text, seed, workdir)
            costs.append(cost)
            for weights in lacking:
                preview = fitted.previewer(weights)
                found = preview.evaluations
                score = base.goal.score_of({task: found[task].metric.value for task in names})
                previews.append(point(text, seed, weights, found, score, seconds=preview.seconds))
    # Written now, too: the rest takes its time.
    write_points(results / "previews.csv", known.previews(previews, weightings), names)
    refined, rates = climb(base, ladder, workdir, weightings, known)
    every = known.previews([*previews, *refined], weightings)
    write_points(results / "previews.csv", every, names)
    # Points go by their weights, which the tables round: new and old ones meet as they are read.
    truths, every = (read_points(results / name)[0] for name in ("truth.csv", "previews.csv"))
    previews, refined = ([p for p in every if bool(p.steps) == late] for late in (False, True))
    header = ["family", "posterior_seed", "task_run_steps", "task_run_seconds"]
    header += ["posterior_seconds", "damping"]
    rows = {(cost.family, cost.seed): _cost_row(cost) for cost in costs} | known.costs
    write_csv(results / "cost.csv", [header, *rows.values()])
    write_json(
        results / "run.json",
        {
            "commands": [*commands_of(known.about), " ".join(["python", *sys.argv])],
            "truth_seeds": sorted({truth.seed for truth in truths}),
            "posterior_seeds": sorted({p.seed for p in every}),
            "refinement_rates": known.about.get("refinement_rates", {}) or rates,
            "training_examples": [len(task.data("train")) for task in definition.tasks],
            "machine": {"cores": os.cpu_count(), "cpu": cpu_name()},
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in PACKAGES},
            "definition": definition.describe(),
        },
    )
    dampings = {
        text: " ".join(
            f"{c.damping:.2g}" for c in costs if c.family == text and c.damping is not None
        )
        for text in families
    }
    tables = [format_qualities(qualities(truths, previews), names, "damping", dampings)]
    if refined:
        whole = definition.finetuning.steps * definition.finetuning.batch_size
        shares = {p.kind: f"{p.examples / whole:.0%}" for p in refined}
        tables.append(format_qualities(qualities(truths, refined), names, "examples", shares))
    return "\n\n".join(tables)


def commands_of(about: Mapping[str, Any]) -> list[str]:
    """The commands that a run.json says the tables were made by."""
    return about.get("commands") or [about["command"]] if about else []


def climb(
    base: FittedStudy,
    ladder: Ladder,
    workdir: Path,
    weightings: list[dict[str, float]],
    known: Known,
) -> tuple[list[Point], dict[str, list[float]]]:
    """The ladder's previews, and the learning rates that were chosen by family and batch size."""
    points: list[Point] = []
    rates: dict[str, list[float]] = defaultdict(list)
    for text in ladder.families:
        for batch_size, rungs in ladder.refinements(base.definition.finetuning).items():
            last = f"{text} + {rungs[-1]} x {batch_size}"
            for seed in range(ladder.seeds):
                lacking = known.missing(last, seed, weightings)
                if not lacking:
                    continue
                fitted, _ = fit_family(base.definition, text, seed, workdir)
                fitted = with_batches(fitted, batch_size)
                rate = best_rate(fitted, rungs[-1], ladder.rates)
                rates[f"{text} x {batch_size}"].append(rate)
                for weights in lacking:
                    points += refined_previews(fitted, base, text, seed, weights, rungs, rate)
    for seed in range(ladder.seeds):
        points += short_finetunes(base, ladder, seed, weightings, known)
    # One kind after the other, however they were made.
    kinds = list(dict.fromkeys(p.kind for p in points))
    return sorted(points, key=lambda p: kinds.index(p.kind)), dict(rates)


def _cost_row(cost: Cost) -> list[object]:
    damping = "" if cost.damping is None else f"{cost.damping:.4g}"
    seconds = [f"{value:.4g}" for value in (cost.run_seconds, cost.posterior_seconds)]
    return [cost.family, cost.seed, cost.steps, *seconds, damping]


def cpu_name() -> str:
    """The processor's model as Linux names it, or what Python knows of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def main(
    definition: Definition,
    workdir: Workdir = None,
    results: Results = None,
    families: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join(FAMILIES),
    divisions: Annotated[int, typer.Option(help="Weights are multiples of 1 / this.")] = 5,
    seeds: Annotated[int, typer.Option(help="Finetunes at each weighting.")] = 2,
    posterior_seeds: Annotated[int, typer.Option(help="Sets of posteriors of a family.")] = 1,
    interior: Annotated[
        bool, typer.Option(help="Leave out weights where a task has none; no table counts them.")
    ] = False,
    truth_rungs: Annotated[
        str,
        typer.Option(
            help="Steps after which finetunes are evaluated, the last one all; default as defined."
        ),
    ] = "",
    rungs: Annotated[
        str, typer.Option(help="Training steps of refined previews, separated by commas.")
    ] = "",
    refined: Annotated[
        str, typer.Option(help="Families whose merges are refined, separated by commas.")
    ] = "isotropic,diagonal,kronecker",
    refined_seeds: Annotated[
        int, typer.Option(help="Sets of posteriors whose merges are refined; default all.")
    ] = 0,
    batches: Annotated[
        str, typer.Option(help="Batch sizes of these steps, in multiples of the finetune's.")
    ] = "1,4",
    rates: Annotated[
        str, typer.Option(help="Rates to choose from, in multiples of the finetune's.")
    ] = "0.1,0.3,1",
    extend: Annotated[
        bool, typer.Option(help="Keep the tables that are there; make only what they lack.")
    ] = False,
    drawn: Annotated[
        str,
        typer.Option(
            help="In place of a grid, so many random weights with some of every task, and so many "
            "without: 28,12, say. What simple rules need is added; see weightings.py."
        ),
    ] = "0,0",
    debug: Debug = False,
) -> None:
    """Compare the previews of each posterior family with real finetunes.

    Example: python studies/families.py studies/digits/optimize.py --posterior-seeds 3
    """

    def work() -> None:
        folder = workdir_of(definition, workdir)
        check_writable(folder)
        table = compare(
            load_definition(definition),
            folder,
            results_of(definition, results),
            listed(families),
            divisions,
            seeds,
            posterior_seeds,
            interior,
            Ladder(
                tuple(map(int, listed(rungs))),
                tuple(listed(refined)) if rungs else (),
                tuple(map(int, listed(batches))),
                tuple(map(float, listed(rates))),
                refined_seeds or posterior_seeds,
            ),
            tuple(map(int, listed(truth_rungs))),
            extend,
            parse_drawn(drawn),
        )
        typer.echo(table)

    guarded(debug, work)


if __name__ == "__main__":
    typer.run(main)
