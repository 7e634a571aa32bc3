"""Where the best weight of film reviews lies, by size and training: how the study was chosen.

    python studies/film/sizes.py --target 150 --steps 81 --rate 1e-3
    python studies/film/sizes.py --target 150 --layers 1 --steps 54 --rate 5e-4

Finetunes an adapter on MiniLM, or its last layers, at some weights of the target, the helpers
having equal shares of the rest, and adds the rows that `results/sizes.csv` lacks: accuracies on
validation data by weight and seed.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import typer

from optuna_merge import fit
from studies.film import last_layer, optimize
from studies.film.data import TARGET
from studies.preview_quality import write_csv

FIELDS = ("target", "layers", "steps", "rate", "weight", "seed", "film", "helpers", "seconds")
RESULTS = Path(__file__).resolve().parent / "results" / "sizes.csv"


def main(
    target: Annotated[int, typer.Option(help="Training examples of film reviews.")] = 150,
    layers: Annotated[
        int, typer.Option(help="Last layers that are trained; 0: the adapter alone.")
    ] = 0,
    steps: Annotated[int, typer.Option(help="Of a finetune.")] = 81,
    rate: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    weights: Annotated[str, typer.Option(help="Of the target.")] = "0,0.1,0.25,0.5,0.75,1",
    seeds: Annotated[int, typer.Option(help="Finetunes at each weight.")] = 2,
    workdir: Annotated[Path, typer.Option(help="Folder of finetunes.")] = Path("workdir/film"),
) -> None:
    """Finetune at some weights of the target."""
    if layers:
        study = last_layer.definition(target=target, layers=layers, steps=steps, rate=rate)
    else:
        study = optimize.definition(target=target, steps=steps, rate=rate)
    once = replace(study.finetuning, steps=1, rung_steps=None, num_rungs=1, warmup=0.0)
    flat = replace(study.posterior, family="isotropic")
    base = fit(replace(study, posterior=flat, finetuning=once), workdir, progress=False)
    rows = read() if RESULTS.exists() else []
    for weight in map(float, weights.split(",")):
        for seed in range(seeds):
            key = [f"{x:g}" for x in (target, layers, steps, rate, weight, seed)]
            if any(row[: len(key)] == key for row in rows):
                continue
            others = (1 - weight) / (len(study.names) - 1)
            mixed = {task: weight if task == TARGET else others for task in study.names}
            run = base.store.run(
                base.model, base.tasks, mixed, replace(study.finetuning, seed=seed)
            )
            found = {task: run.evaluations[task].metric.value for task in study.names}
            mean = sum(v for task, v in found.items() if task != TARGET) / (len(found) - 1)
            rows.append([*key, *(f"{x:.4f}" for x in (found[TARGET], mean)), f"{run.seconds:.3g}"])
            write_csv(RESULTS, [FIELDS, *rows])
            typer.echo(" ".join(rows[-1]))


def read() -> list[list[str]]:
    """The rows that are there."""
    with RESULTS.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


if __name__ == "__main__":
    typer.run(main)
