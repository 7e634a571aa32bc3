"""A program with its task runs and posteriors: a workbench of somebody else's training."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from optuna_merge._base.files import check_writable, json_hash, short_hash
from optuna_merge._base.turns import models_turn
from optuna_merge.definition import GivenRun, check_task_names, run_hash
from optuna_merge.exceptions import NotFiniteError
from optuna_merge.fitting import (
    FinetuneFiles,
    FolderSharing,
    Measured,
    Report,
    Unit,
    alone_weights,
    anchor_weights,
    counts_as_reused,
    reference_point,
    uniform_weights,
)
from optuna_merge.goals import (
    PARETO,
    Constraint,
    Goal,
    Limits,
    Score,
    doubtful_sense,
    make_constraints,
    make_score,
)
from optuna_merge.tasks import Measurement
from optuna_merge.trainers._checkpoints import checkpoints_in
from optuna_merge.trainers._program import Previews, Program
from optuna_merge.trainers._runs import FinishedRun, Runs

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """What a study of a program optimises: its score and constraints.

    Attributes:
        score: As in a `StudyDefinition`.
        constraints: The same.
        greater_is_better: Whether the tasks' metric is to be maximised.
    """

    score: str | Callable[[Mapping[str, float]], float] | Score
    constraints: float | Sequence[Constraint]
    greater_is_better: bool


class FittedProgram:
    """A `Workbench` of another training program, with its task runs and posteriors.

    It comes from `from_trainer` or `from_command`, and is what `open_search`, `Objective` and
    `make_report` take.

    Attributes:
        names, steps, parts, anchors, costs, goal: As a `Workbench` has them.
        unit: What the program's weights mean, in words.
        runs: Each task's own run.
        alone: Each task's metric in it.
        damping: The damping; None for averaging.
    """

    def __init__(
        self,
        program: Program,
        wanted: Wanted,
        runs: Runs,
        alone: Mapping[str, FinishedRun],
        previews: Previews,
        parts: Mapping[str, Any],
    ) -> None:
        self._program, self._wanted, self._runs = program, wanted, runs
        self._previews, self.damping = previews, previews.damping
        self.names, self.steps, self.unit = program.names, program.steps, str(program.unit)
        self.runs = dict(alone)
        self.alone = {task: run.metrics[task] for task, run in alone.items()}
        self.anchors = anchor_weights(self.names, uniform=previews.anchor is not None)
        self.goal = _goal(wanted, program.names, self.alone)
        self.parts = dict(parts) | {
            "posterior": dict(previews.settings),
            "posteriors": dict(previews.hashes),
            **({} if previews.anchor is None else {"anchor": previews.anchor}),
        }
        self.costs = {
            "task_run_steps": sum(run.steps for run in alone.values() if not run.given),
            "task_run_seconds": sum(run.seconds for run in alone.values()),
            "posterior_seconds": previews.seconds,
        }

    @property
    def fingerprint(self) -> str:
        """One hash of program, tasks, unit of weights, settings and posteriors."""
        return json_hash(self.parts)

    @property
    def reference_point(self) -> dict[str, float]:
        """By task, the metric that hypervolumes are measured from; see `FittedStudy`."""
        runs = [run.metrics for run in self.runs.values()]
        return reference_point(runs, dict.fromkeys(self.names, self._wanted.greater_is_better))

    @models_turn()
    def preview(self, weights: Mapping[str, float]) -> Measured:
        """What the merge at these task weights is worth; see `Workbench`."""
        started = time.perf_counter()
        metrics = self._previews.metrics(weights)
        return Measured(_measured(metrics, "the merge"), time.perf_counter() - started)

    @models_turn()
    def merged(self, weights: Mapping[str, float]) -> dict[str, Tensor]:
        """The trained parameters of the merge at these task weights, by the model's names.

        `model.load_state_dict(fitted.merged(weights), strict=False)` makes the model of a preview.
        Of LoRA adapters of which both factors are trained, they have the summed ranks.

        Raises:
            ValueError: the program is a command, whose merges are files.
        """
        if self._previews.merged is None:
            raise ValueError(
                "merges of a command are made from file to file; optuna_merge.merging.merge_files "
                "writes that of the checkpoints in fitted.folder(weights of one task alone)"
            )
        return dict(self._previews.merged(weights))

    def finetune(
        self,
        weights: Mapping[str, float],
        report: Report,
        *,
        repeat: int = 0,
        title: str | None = None,
    ) -> Measured:
        """Finetune at these task weights, or find the finished run; see `Workbench`."""
        run = self._runs.run(weights, report, repeat=repeat, title=title)
        reused = counts_as_reused(run.reused, weights, self.anchors, repeat)
        return Measured(_measured(run.metrics, "the finetune"), run.seconds, reused)

    def finetune_files(self, weights: Mapping[str, float], *, repeat: int = 0) -> FinetuneFiles:
        """Where the finetune's model and its checkpoints `checkpoint-N` are, for a `Collector`."""
        folder = self.folder(weights, repeat=repeat)
        return FinetuneFiles(folder, self._program.model(folder), checkpoints_in(folder))

    def folder(self, weights: Mapping[str, float], *, repeat: int = 0) -> Path:
        """Where the finetune at these task weights is, or will be; its model is in `model`."""
        return self._runs.folder(weights, repeat)


def fit_program(
    program: Program,
    wanted: Wanted,
    workdir: str | Path,
    *,
    progress: bool = True,
    given: Mapping[str, GivenRun] | None = None,
    anchor: Literal["uniform", "none"] = "uniform",
) -> FittedProgram:
    """Run each task alone, and uniform weights, and make previews; what is there is not repeated.

    Args:
        program: What trains.
        wanted: Score and constraints.
        workdir: The working folder; is made. Workers that fit at once share the tasks out.
        progress: Show progress bars.
        given: Checkpoints that stand for tasks' own runs, which then cost nothing.
        anchor: "uniform": uniform weights are finetuned first, and correct all merges; "none".

    Raises:
        TypeError: checkpoints are given to a program that takes none.
        ValueError: names that can't be tasks', a score or constraint that doesn't fit.
        ProgramError: the program ended otherwise than it should.
        NotFiniteError: a metric of a task run is NaN or infinite.
    """
    check_task_names(program.names)
    program.unit.check_names(program.names)
    _goal(wanted, program.names, dict.fromkeys(program.names, 1.0))
    workdir = Path(workdir)
    check_writable(workdir)
    if anchor not in ("uniform", "none"):
        raise ValueError(f"anchor: uniform or none, got {anchor!r}")
    if given and not hasattr(program, "adopt"):
        raise TypeError(
            f"{type(program).__name__} takes no given runs: it has no method adopt; see "
            f"AdoptingProgram"
        )
    known = {task: (Path(run.path), run_hash(task, run)) for task, run in (given or {}).items()}
    parts = _parts(program, wanted)
    if known:
        parts["runs"] = {task: of_tensors for task, (_, of_tensors) in known.items()}
    _logger.info("%s", program.unit)
    for task, (path, _) in known.items():
        _logger.info("task %s: its run is given, %s, and costs nothing", task, path)
    runs = Runs(program, workdir / "program-runs", known)
    alone, uniform = _train_alone(
        program, runs, FolderSharing(workdir), parts, progress=progress, anchor=anchor
    )
    senses = dict.fromkeys(program.names, wanted.greater_is_better)
    doubt = doubtful_sense({task: alone[task].metrics for task in program.names}, senses)
    if doubt is not None:
        _logger.warning("%s", doubt)
    folders = {task: alone[task].folder for task in program.names}
    with models_turn():
        previews = program.previews(folders, uniform, workdir / "posteriors")
    return FittedProgram(program, wanted, runs, alone, previews, parts)


def _train_alone(
    program: Program,
    runs: Runs,
    sharing: FolderSharing,
    parts: Mapping[str, Any],
    *,
    progress: bool,
    anchor: str,
) -> tuple[dict[str, FinishedRun], Path | None]:
    """Each task's own run, and the folder of that at uniform weights if it corrects merges."""
    alone: dict[str, FinishedRun] = {}
    anchors: list[Path] = []

    def train(task: str) -> list[Path]:
        title = f"task {task}" if progress else None
        alone[task] = runs.run(alone_weights(program.names)[task], title=title)
        _measured(alone[task].metrics, f"the run of task {task!r} alone")
        return [alone[task].folder]

    def train_uniform() -> list[Path]:
        title = "uniform weights" if progress else None
        run = runs.run(uniform_weights(program.names), title=title)
        if all(map(math.isfinite, run.metrics.values())):
            anchors.append(run.folder)
        else:
            _logger.warning("merges stay as they are: at uniform weights a metric isn't finite")
        return anchors

    units = [
        Unit(f"task {task}", short_hash([parts, task]), partial(train, task))
        for task in program.names
    ]
    if len(program.names) > 1 and anchor == "uniform":
        key = short_hash([parts, "uniform"])
        units.append(Unit("uniform weights", key, train_uniform))
    sharing.work_off(units)
    return alone, anchors[0] if anchors else None


def _parts(program: Program, wanted: Wanted) -> dict[str, Any]:
    score = wanted.score
    if not isinstance(score, str):
        score = make_score(score, program.names).name
    constraints = make_constraints(wanted.constraints, program.names)
    return {
        "tasks": [{"name": task, "data": program.describe_task(task)} for task in program.names],
        "finetuning": {"steps": program.steps, **program.describe()},
        "weights": program.unit.describe(),
        "score": score,
        "greater_is_better": wanted.greater_is_better,
        **({"constraints": [each.name for each in constraints]} if constraints else {}),
    }


def _goal(wanted: Wanted, names: tuple[str, ...], alone: Mapping[str, float]) -> Goal:
    senses = dict.fromkeys(names, wanted.greater_is_better)
    score = None
    if wanted.score != PARETO:
        score = make_score(wanted.score, names, greater_is_better=wanted.greater_is_better)
    elif len(names) < 2:
        raise ValueError("score 'pareto' needs at least two tasks, got one")
    constraints = make_constraints(wanted.constraints, names)
    limits = Limits.of(constraints, alone, senses) if constraints else None
    return Goal(score, senses, alone, limits)


def _measured(metrics: Mapping[str, float], what: str) -> dict[str, Measurement]:
    for task, value in metrics.items():
        if not math.isfinite(value):
            raise NotFiniteError(
                f"task {task!r}: the metric of {what} is {value:g} on validation data; expected a "
                f"finite number. A lower learning rate may help"
            )
    return {task: Measurement(value, math.nan) for task, value in metrics.items()}
