"""Real finetunes of the mixture study, and previews of the same weights, as tables.

    python studies/mixture/truths.py
    python studies/mixture/truths.py --body medium

The truths are at uniform weights, at each task alone, at weights in proportion to the data, at
random weights of all tasks and of two to five of them in turn (`drawn_weights`), and at those that
the doubling rule comes to, for the worst excess and for Italian. All have the seed 0. What chooses
weights has the seed 1 and is judged by the others: the task runs and posteriors of the previews,
the finetune at uniform weights that corrects anchored ones, and the doubling rule's finetunes. As
many of the random weights as `--again` says have a finetune of seed 1, too.

Writes truth.csv (a row a rung, on validation data), test.csv (the ends, on test data),
previews.csv, cost.csv and run.json into `results` beside this file, or for the medium body into
`results/medium`. Finetunes stay in the working folder: the command, started again, goes on from
there. With `--seconds` it begins no other finetune after so long, ends with exit status 3, and
wants to be started again.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import typer

from optuna_merge._base.files import write_json
from optuna_merge.commands import Debug, guarded
from optuna_merge.definition import StudyDefinition
from optuna_merge.fitting import FittedStudy
from optuna_merge.models import evaluate_tasks, task_batches
from optuna_merge.trials import canonical_weights, uniform_weights
from studies.extension import Known
from studies.families import PACKAGES, cpu_name, find_truths, fit_family
from studies.fetch import default_cache
from studies.mixture.body import english_loss
from studies.mixture.data import english_text, load_texts
from studies.mixture.optimize import EXAMPLES, body_folder, definition
from studies.mixture.weights import drawn_weights, fixed_weights
from studies.preview_quality import (
    TRUTH,
    Point,
    Weights,
    as_written,
    last_rungs,
    point,
    read_points,
    write_csv,
    write_points,
)
from studies.simple_rules import doubled

FAMILIES = (
    "isotropic",
    "diagonal",
    "rows_columns",
    "isotropic+anchor",
    "diagonal+anchor",
    "rows_columns+anchor",
)
CHOOSING = 1
"""The seed of what chooses weights."""

AGAIN = 3
"""Exit status of a run that wants to be started again."""


@dataclass
class Turn:
    """How long this run of the command may begin finetunes."""

    seconds: float
    started: float

    def over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() - self.started > self.seconds


@dataclass(frozen=True)
class Sizes:
    """How many truths there are; see the flags."""

    inside: int
    faces: int
    again: int
    doublings: int


class NotYet(Exception):
    """The time of this run was up before everything was there."""


class Finetunes:
    """The real finetunes, made as they are asked for until the time is up."""

    def __init__(self, fitted: FittedStudy, turn: Turn) -> None:
        self.fitted = fitted
        self._turn = turn

    def at(self, weights: Weights, seed: int = 0) -> list[Point]:
        """All rungs of the finetune.

        Raises:
            NotYet: it is not there, and the time is up.
        """
        base = self.fitted.definition.finetuning
        settings = replace(base, seed=base.seed + seed)
        fitted = replace(self.fitted, definition=replace(self._definition, finetuning=settings))
        named = dict(zip(self.fitted.names, weights))
        if self._turn.over() and self.fitted.store.find(named, settings) is None:
            raise NotYet
        return find_truths(fitted, [named], 1, False, Known())

    @property
    def _definition(self) -> StudyDefinition:
        return self.fitted.definition

    def doubling(self, worst: Callable[[Sequence[float]], int], count: int) -> list[list[Point]]:
        """Those that the doubling rule makes, so many after the one at uniform weights."""
        weights = list(uniform_weights(self.fitted.names).values())
        found = []
        for _ in range(count):
            (end,) = last_rungs(self.at(canonical_weights(weights), CHOOSING))
            weights = doubled(weights, worst(end.metrics))
            found.append(self.at(canonical_weights(weights), CHOOSING))
        return found

    def on_test(self, truth: Point) -> Point:
        """The end of a finetune on test data."""
        base = self._definition.finetuning
        named = dict(zip(self.fitted.names, truth.weights))
        run = self.fitted.store.find(named, replace(base, seed=truth.seed))
        assert run is not None, "it was made before"
        model, tasks = self.fitted.model, self.fitted.tasks
        model.reset()
        model.load(run.parameters())
        batches = task_batches(model, tasks, "test", batch_size=base.evaluation_batch_size)
        found = evaluate_tasks(model, tasks, batches, "test")
        return point(TRUTH, truth.seed, named, found, float("nan"), steps=truth.steps)


def excess_of(fitted: FittedStudy) -> Callable[[Sequence[float]], int]:
    """The task that is furthest behind its own run."""
    alone = np.array([fitted.alone[name] for name in fitted.names])
    return lambda metrics: int((np.array(metrics) - alone).argmax())


def make(body: str, workdir: Path, results: Path, sizes: Sizes, turn: Turn) -> None:
    """Make everything and write the tables.

    Args:
        body: Its name in `BODIES`.
        workdir: Folder of finetunes.
        results: Folder of the tables.
        sizes: How many truths there are.
        turn: How long finetunes are begun.

    Raises:
        NotYet: the time was up before; truth.csv has what there is.
    """
    study = definition(body=body)
    names = study.names
    fitted, _ = fit_family(study, "isotropic", 0, workdir)
    finetunes = Finetunes(fitted, turn)
    drawn = drawn_weights(names, sizes.inside, sizes.faces)
    truths: list[Point] = []
    uniform, *others = fixed_weights(names, EXAMPLES)
    wanted = [(uniform, 0), (uniform, CHOOSING)]
    wanted += [(w, CHOOSING) for w in others[:-1]] + [(w, 0) for w in (*others, *drawn)]
    wanted += [(w, CHOOSING) for w in drawn[: sizes.again]]
    late = False
    try:
        for weights, seed in wanted:
            truths += finetunes.at(weights, seed)
        italian = names.index("italian")
        for rule in (excess_of(fitted), lambda metrics: italian):
            for points in finetunes.doubling(rule, sizes.doublings):
                truths += [*points, *finetunes.at(points[0].weights)]
    except NotYet:
        late = True
    truths = list({(t.weights, t.seed, t.rung): t for t in truths}.values())
    write_points(results / "truth.csv", truths, names)
    print(f"{len(last_rungs(truths))} finetunes", flush=True)
    if late:
        raise NotYet
    rows, costs = previews(study, [t.weights for t in last_rungs(truths)], workdir, turn)
    write_points(results / "previews.csv", rows, names)
    write_csv(results / "cost.csv", costs)
    tested = [finetunes.on_test(t) for t in last_rungs(truths)]
    write_points(results / "test.csv", tested, names)
    write_json(results / "run.json", about(study, body))


def previews(
    study: StudyDefinition, weightings: Sequence[Weights], workdir: Path, turn: Turn
) -> tuple[list[Point], list[list[object]]]:
    """Previews of each family at the weights, and what its posteriors cost.

    Raises:
        NotYet: the time was up before; the next run finds those that there are.
    """
    points: list[Point] = []
    costs: list[list[object]] = [["family", "run_seconds", "posterior_seconds", "damping"]]
    for family in FAMILIES:
        fitted, cost = fit_family(study, family, CHOOSING, workdir)
        damping = "" if cost.damping is None else f"{cost.damping:.4g}"
        seconds = [f"{x:.4g}" for x in (cost.run_seconds, cost.posterior_seconds)]
        costs.append([family, *seconds, damping])
        path = workdir / f"previews-{fitted.fingerprint[:16]}.csv"
        known = {p.weights: p for p in read_points(path)[0]} if path.is_file() else {}
        found = {as_written(weights): p for weights, p in known.items()}
        try:
            for weights in dict.fromkeys(weightings):
                if as_written(weights) not in found:
                    if turn.over():
                        raise NotYet
                    found[as_written(weights)] = preview(fitted, family, weights)
        finally:
            if found:
                write_points(path, list(found.values()), study.names)
        points += [found[as_written(weights)] for weights in dict.fromkeys(weightings)]
    return points, costs


def preview(fitted: FittedStudy, family: str, weights: Weights) -> Point:
    """What the merge at the weights is worth."""
    named = dict(zip(fitted.names, weights))
    made = fitted.previewer(named)
    losses = {name: e.metric.value for name, e in made.evaluations.items()}
    score = fitted.goal.score_of(losses)
    return point(family, CHOOSING, named, made.evaluations, score, seconds=made.seconds)


def loss_on_english(body: str) -> float:
    """Of the pretrained body, before any finetune."""
    cache = default_cache()
    return english_loss(body_folder(body, load_texts(cache)), english_text(cache))


def about(study: StudyDefinition, body: str) -> dict[str, object]:
    """What the tables were made of and with."""
    return {
        "command": " ".join(["python", *sys.argv]),
        "training_examples": EXAMPLES,
        "machine": {"cores": os.cpu_count(), "cpu": cpu_name()},
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in PACKAGES},
        "body": {"name": body, "english_loss": loss_on_english(body)},
        "definition": study.describe(),
    }


def of_body(body: str, mark: str) -> str:
    """The end of a folder's name; the small body has none."""
    return "" if body == "small" else f"{mark}{body}"


def main(
    body: Annotated[str, typer.Option(help="small or medium.")] = "small",
    workdir: Annotated[
        Optional[Path],  # noqa: UP045 (typer reads it)
        typer.Option(
            help="Folder of finetunes; default workdir/mixture, or with the body's name."
        ),
    ] = None,
    results: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of the tables; default results, or results/BODY."),
    ] = None,
    inside: Annotated[int, typer.Option(help="Random weights of all tasks.")] = 16,
    faces: Annotated[int, typer.Option(help="Random weights of some tasks.")] = 12,
    again: Annotated[int, typer.Option(help="Of these, how many have a second seed.")] = 6,
    doublings: Annotated[int, typer.Option(help="Steps of the doubling rule.")] = 2,
    seconds: Annotated[float, typer.Option(help="After which to begin no finetune.")] = 1e9,
    debug: Debug = False,
) -> None:
    """Make the tables of the mixture study."""

    def work() -> None:
        try:
            sizes = Sizes(inside, faces, again, doublings)
            made_in = workdir or Path("workdir") / f"mixture{of_body(body, '-')}"
            tables = results or Path(__file__).parent / f"results{of_body(body, '/')}"
            make(body, made_in, tables, sizes, Turn(seconds, time.monotonic()))
        except NotYet:
            raise typer.Exit(AGAIN) from None

    guarded(debug, work)


if __name__ == "__main__":
    typer.run(main)
