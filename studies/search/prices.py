"""What the parts of a search cost: training steps, examples and seconds side by side.

    OMP_NUM_THREADS=1 python studies/search/prices.py studies/mnist/optimize.py

measures the seconds of one thread and writes prices.json into the study's folder `results`, beside
its tables. Finetunes are of uniform weights, previews of the definition's own posteriors at random
weights (the median). The frozen layers' outputs, which all methods need once, are made before the
clock starts. Seconds are the process's CPU time; the time on the wall stands beside them, and
shows whether the machine was idle.

Examples are counted by passes through the model: of a training example one forward and one
backward, which is twice as dear; of an evaluated example the forward pass, a third of it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import typer

from optuna_merge import FittedStudy, StudyDefinition, fit
from optuna_merge._base.files import write_json
from optuna_merge.commands import Debug, Definition, guarded, load_definition
from optuna_merge.fitting import MULTIPLES, trial_weightings
from optuna_merge.search import baseline_weights
from optuna_merge.trials import UNIFORM
from studies.families import cpu_name
from studies.flags import Results, results_of
from studies.search.replay import Prices

PREVIEWS = 7
RUNGS = 3
FORWARD = 1 / 3
"""Passes of an evaluated example, in those of a training example."""


@dataclass(frozen=True)
class Clock:
    """CPU seconds of this process, and seconds on the wall."""

    cpu: float
    wall: float


def timed(work: Callable[[], object]) -> Clock:
    """How long something takes."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return Clock(time.process_time() - cpu, time.perf_counter() - wall)


def measure(definition: StudyDefinition, workdir: Path) -> dict[str, Clock]:
    """Seconds of each part: "alone" of one task run, "finetune", "posteriors", "preview"."""
    warm = fit(
        replace(
            definition,
            finetuning=replace(
                definition.finetuning, steps=1, num_rungs=1, rung_steps=None, warmup=0.0
            ),
            posterior=replace(definition.posterior, family="isotropic"),
        ),
        workdir,
        progress=False,
    )  # makes the frozen layers' outputs, and imports what is imported late
    model, tasks, store = warm.model, warm.tasks, warm.store
    baselines = baseline_weights(definition.names)
    runs = {
        name: timed(lambda w=weights: store.run(model, tasks, w, definition.finetuning))  # type: ignore[misc]
        for name, weights in baselines.items()
    }
    fitted: list[FittedStudy] = []
    posteriors = timed(lambda: fitted.append(fit(definition, workdir, progress=False)))
    rng = np.random.default_rng(0)
    previews = []
    for _ in range(PREVIEWS):
        drawn = rng.dirichlet(np.ones(len(baselines) - 1)).tolist()
        weights = dict(zip(definition.names, drawn))
        previews.append(timed(lambda w=weights: fitted[0].previewer(w)))  # type: ignore[misc]
    alone = [clock for name, clock in runs.items() if name != UNIFORM]
    return {
        "finetune": runs[UNIFORM],
        "alone": Clock(median(c.cpu for c in alone), median(c.wall for c in alone)),
        "posteriors": posteriors,
        "preview": Clock(median(c.cpu for c in previews), median(c.wall for c in previews)),
    }


def passes(definition: StudyDefinition) -> dict[str, float]:
    """Examples of each part, in training examples; see the module."""
    n_tasks = len(definition.tasks)
    settings, posterior = definition.finetuning, definition.posterior
    validation = sum(len(task.data("validation")) for task in definition.tasks)
    evaluations = RUNGS * validation * FORWARD
    batches = settings.steps * settings.batch_size
    examples = [min(posterior.examples, len(task.data("train"))) for task in definition.tasks]
    sweep = len(MULTIPLES) * len(trial_weightings(definition.names))
    heads = definition.preview.head_examples * n_tasks
    return {
        "finetune": n_tasks * batches + evaluations,
        "alone": batches + evaluations,
        "posteriors": sum(examples) + sweep * n_tasks * posterior.damping_examples * FORWARD,
        "preview": (validation + heads) * FORWARD,
    }


def prices_of(definition: StudyDefinition, clocks: dict[str, Clock]) -> Prices:
    """All in units of one finetune at uniform weights."""
    examples = passes(definition)
    n_tasks = len(definition.tasks)

    def price(part: str, steps: float) -> tuple[float, float, float]:
        return (
            steps,
            examples[part] / examples["finetune"],
            clocks[part].cpu / clocks["finetune"].cpu,
        )

    return Prices(
        alone=price("alone", 1.0),
        posteriors=price("posteriors", 0.0),
        preview=price("preview", 0.0),
        tasks=n_tasks,
    )


def main(
    definition: Definition,
    results: Results = None,
    debug: Debug = False,
) -> None:
    """Measure what the parts of a search cost, on an idle machine.

    Example: python studies/search/prices.py studies/digits/optimize.py
    """

    def work() -> None:
        study = load_definition(definition)
        workdir = Path(tempfile.mkdtemp())
        try:
            clocks = measure(study, workdir)
        finally:
            shutil.rmtree(workdir)
        prices = prices_of(study, clocks)
        found = {
            "command": " ".join(["python", *sys.argv]),
            "prices": asdict(prices),
            "seconds": {part: asdict(clock) for part, clock in clocks.items()},
            "machine": {"cores": os.cpu_count(), "cpu": cpu_name()},
        }
        write_json(results_of(definition, results) / "prices.json", found)
        typer.echo(json.dumps(found, indent=1))

    guarded(debug, work)


if __name__ == "__main__":
    typer.run(main)
