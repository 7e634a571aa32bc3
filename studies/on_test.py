"""The finetunes of a drawn table on test data, for `judge.py` to judge choices by.

    python studies/on_test.py studies/film/optimize.py --drawn 22,10

Evaluates the finetunes of truth.csv, which `families.py` left in the working folder, on the tasks'
test data, and writes test.csv beside it: the same columns, without the rungs under way. Rows that
are there stay; no finetune is made anew.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import typer

from optuna_merge.commands import Debug, Definition, guarded, load_definition
from optuna_merge.fitting import FittedStudy
from optuna_merge.models import evaluate_tasks, task_batches
from studies.families import fit_family
from studies.flags import Results, Workdir, results_of, workdir_of
from studies.preview_quality import (
    TRUTH,
    Point,
    as_written,
    last_rungs,
    point,
    read_points,
    write_points,
)
from studies.weightings import parse_drawn, scattered

TEST = "test.csv"


def tested(
    base: FittedStudy, weightings: list[dict[str, float]], truths: list[Point], known: list[Point]
) -> list[Point]:
    """The ends of the truths on test data.

    Raises:
        ValueError: a finetune is not in the working folder.
    """
    there = {(p.seed, as_written(p.weights)): p for p in known}
    exact = {as_written(tuple(w.values())): w for w in weightings}
    found = []
    for truth in last_rungs(truths):
        key = (truth.seed, as_written(truth.weights))
        if key not in there:
            settings = replace(base.definition.finetuning, seed=truth.seed)
            weights = exact.get(key[1])
            run = None if weights is None else base.store.find(weights, settings)
            if weights is None or run is None:
                raise ValueError(
                    f"no finetune of seed {truth.seed} at {truth.weights} in {base.store.folder}; "
                    f"make it by studies/families.py with the same --drawn"
                )
            base.model.reset()
            base.model.load(run.parameters(), source=str(run.path))
            size = settings.evaluation_batch_size
            batches = task_batches(base.model, base.tasks, "test", batch_size=size)
            evaluations = evaluate_tasks(base.model, base.tasks, batches, "test")
            score = base.goal.score_of({t: evaluations[t].metric.value for t in weights})
            there[key] = point(
                TRUTH,
                truth.seed,
                weights,
                evaluations,
                score,
                rung=truth.rung,
                steps=truth.steps,
                seconds=truth.seconds,
                start="pretrained",
            )
        found.append(there[key])
    return found


def main(
    definition: Definition,
    drawn: Annotated[str, typer.Option(help="As `families.py` was told.")],
    workdir: Workdir = None,
    results: Results = None,
    debug: Debug = False,
) -> None:
    """Evaluate the finetunes of a drawn table on test data."""

    def work() -> None:
        study = load_definition(definition)
        folder = workdir_of(definition, workdir)
        tables = results_of(definition, results)
        base, _ = fit_family(study, "isotropic", 0, folder)
        inside, faces = parse_drawn(drawn)
        sizes = [len(task.data("train")) for task in study.tasks]
        weightings = [
            dict(zip(study.names, w)) for w in scattered(sizes, inside=inside, faces=faces)
        ]
        truths, names = read_points(tables / "truth.csv")
        path = tables / TEST
        known = read_points(path)[0] if path.exists() else []
        found = tested(base, weightings, truths, known)
        write_points(path, found, names)
        typer.echo(f"{path}: {len(found)} finetunes")

    guarded(debug, work)


if __name__ == "__main__":
    typer.run(main)
