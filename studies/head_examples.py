"""How many training examples should heads be solved on? Errors, ranks and seconds by their number.

    python studies/head_examples.py studies/text/optimize.py studies/text/results/sixths

Reads truth.csv of the folder (see `families.py`), makes task runs, posteriors and the finetune at
uniform weights of a seed that no truth has, previews all interior weights of the table with heads
solved on each number of examples, and writes `head_examples.csv` (the previews) and
`head_examples.md` beside it.

Columns are those of `anchors.py`, and the CPU seconds of a preview (the median, one thread with
`OMP_NUM_THREADS=1`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import typer

from optuna_merge.commands import Debug, Definition, guarded, load_definition
from optuna_merge.definition import StudyDefinition
from optuna_merge.fitting import fit
from studies.anchors import SEED, Array, Truths, row
from studies.flags import Workdir, listed, workdir_of
from studies.preview_quality import FINETUNE, write_csv


@dataclass(frozen=True)
class Previews:
    """What heads solved on so many examples give.

    Attributes:
        examples: Their number, of each task.
        metrics: A row for each weighting, a column for each task.
        seconds: CPU seconds of a preview, the median.
    """

    examples: int
    metrics: Array
    seconds: float


def previews(
    definition: StudyDefinition, examples: int, weights: Array, workdir: Path
) -> Previews:
    """The previews of all weightings."""
    fitted = fit(
        replace(
            definition,
            posterior=replace(definition.posterior, seed=SEED),
            finetuning=replace(definition.finetuning, seed=SEED),
            preview=replace(definition.preview, heads="resolved", head_examples=examples),
        ),
        workdir,
        progress=False,
    )
    fitted.previewer(dict(zip(fitted.names, weights[0].tolist())))  # what is made only once
    rows, seconds = [], []
    for each in weights.tolist():
        started = time.process_time()
        found = fitted.previewer(dict(zip(fitted.names, each))).evaluations
        seconds.append(time.process_time() - started)
        rows.append([found[task].metric.value for task in fitted.names])
    return Previews(examples, np.array(rows), median(seconds))


def table(truths: Truths, made: Sequence[Previews], names: Sequence[str]) -> str:
    """A row for each number of examples as Markdown, that of another finetune first."""
    mean = truths.metrics.mean(0)
    lines = [["examples", "error", *names, "mean", "worst", "seconds"]]
    lines.append(["---"] * len(lines[0]))
    if len(truths.metrics) > 1:
        others = np.delete(truths.metrics, 0, 0).mean(0)
        lines.append([*row(FINETUNE, truths.metrics[0], others, truths.weights), ""])
    for each in made:
        cells = row(str(each.examples), each.metrics, mean, truths.weights)
        lines.append([*cells, f"{each.seconds:.3g}"])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def write(path: Path, truths: Truths, made: Sequence[Previews], names: Sequence[str]) -> None:
    """All previews as CSV."""
    rows: list[list[object]] = [
        ["examples", *(f"weight_{n}" for n in names), *(f"metric_{n}" for n in names)]
    ]
    for each in made:
        for weights, metrics in zip(truths.weights, each.metrics):
            rows.append([each.examples, *(f"{x:.7g}" for x in (*weights, *metrics))])
    write_csv(path, rows)


def main(
    definition: Definition,
    results: Annotated[Path, typer.Argument(help="Folder with truth.csv; the tables go there.")],
    examples: Annotated[str, typer.Option(help="Separated by commas.")] = "64,128,256,512",
    workdir: Workdir = None,
    debug: Debug = False,
) -> None:
    """Compare numbers of examples that heads are solved on."""

    def work() -> None:
        numbers = [int(number) for number in listed(examples)]
        found = load_definition(definition)
        truths = Truths.read(results)
        folder = workdir_of(definition, workdir)
        made = [previews(found, number, truths.weights, folder) for number in numbers]
        write(results / "head_examples.csv", truths, made, found.names)
        text = table(truths, made, found.names)
        (results / "head_examples.md").write_text(text, encoding="utf-8")
        typer.echo(text)

    guarded(debug, work)


if __name__ == "__main__":
    typer.run(main)
