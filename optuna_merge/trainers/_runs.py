"""Finished and unfinished runs of a program, each in the folder of what it is made from."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from filelock import FileLock

from optuna_merge._base.files import short_hash, write_json
from optuna_merge._base.turns import models_turn
from optuna_merge.exceptions import ProgramError
from optuna_merge.fitting import Report
from optuna_merge.trainers._program import AdoptingProgram, Program, Run
from optuna_merge.trials import alone_weights

_logger = logging.getLogger(__name__)

_FINISHED = "finished.json"
_SECONDS = "seconds.json"

Rungs = dict[int, dict[str, float]]


@dataclass(frozen=True)
class FinishedRun:
    """A run that came to its end.

    Attributes:
        folder: Where its model is.
        rungs: The tasks' metrics after each rung's step.
        steps: Training steps.
        seconds: What they took, evaluations included, over all calls.
        reused: Nothing was trained by this call.
        given: Where the checkpoint is that was given for it; None: it was trained.
    """

    folder: Path
    rungs: Rungs
    steps: int
    seconds: float
    reused: bool
    given: str | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """By task, at the end."""
        return self.rungs[self.steps]


class Runs:
    """A folder of runs: what is there is not trained again, what was killed goes on.

    A task's own run is under what it depends on, this task alone; but its metrics are of all
    tasks, so the others count, too. `given`: checkpoints that stand for such runs, with hashes.
    """

    def __init__(
        self, program: Program, folder: Path, given: Mapping[str, tuple[Path, str]]
    ) -> None:
        self._program, self._folder, self._given = program, folder, given
        self._tasks = {task: program.describe_task(task) for task in program.names}
        self._described = program.describe()

    def folder(self, weights: Mapping[str, float], repeat: int = 0) -> Path:
        """Where the run at these weights is, or will be."""
        program = self._program
        numbers = {task: float(weights[task]) for task in program.names}
        made_of = [self._described, self._tasks, program.unit.describe(), numbers, repeat]
        made_of.append(program.steps)  # not all programs describe them
        if (given := self._given_at(weights, repeat)) is not None:
            made_of.append(given[1])
        return self._folder / short_hash(made_of)

    def _given_at(self, weights: Mapping[str, float], repeat: int) -> tuple[Path, str] | None:
        """The checkpoint that stands for the run at these weights; None: it is trained."""
        alone = [task for task, weight in weights.items() if weight == 1]
        return self._given.get(alone[0]) if alone and not repeat else None

    @models_turn()
    def run(
        self,
        weights: Mapping[str, float],
        report: Report | None = None,
        *,
        repeat: int = 0,
        title: str | None = None,
    ) -> FinishedRun:
        """Train at the weights unless that was done."""
        folder = self.folder(weights, repeat)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            if not (folder / _FINISHED).exists():
                if (given := self._given_at(weights, repeat)) is None:
                    return self._train(weights, folder, report, repeat, title)
                self._adopt(weights, folder, given[0])
            found = _read(folder)
            for step, metrics in sorted(found.rungs.items()):
                if report is not None:
                    report(step, metrics)
            return found

    def _adopt(self, weights: Mapping[str, float], folder: Path, path: Path) -> None:
        program = cast(AdoptingProgram, self._program)  # fit_program has seen to it
        found = program.adopt(Run(weights, program.unit.converted(weights), folder), path)
        rungs = {program.steps: {task: float(found[task]) for task in program.names}}
        about = {"weights": dict(weights), "checkpoint": str(path.absolute())}
        self._write(folder, about, rungs, 0.0)

    def _train(
        self,
        weights: Mapping[str, float],
        folder: Path,
        report: Report | None,
        repeat: int,
        title: str | None,
    ) -> FinishedRun:
        program = self._program
        converted = program.unit.converted(weights)
        rungs: Rungs = {}
        before, started = _seconds(folder), time.perf_counter()

        def remember(step: int, metrics: Mapping[str, float]) -> None:
            rungs[step] = {task: float(metrics[task]) for task in program.names}
            write_json(folder / _SECONDS, before + time.perf_counter() - started)
            if report is not None:
                report(step, rungs[step])

        try:
            program.train(Run(weights, converted, folder, repeat, title), remember)
        finally:
            write_json(folder / _SECONDS, before + time.perf_counter() - started)
        if program.steps not in rungs:
            reported = f"the last was after step {max(rungs)}" if rungs else "there was none"
            raise ProgramError(
                f"the training in {folder} ended without metrics after its last step "
                f"{program.steps} ({reported}); they are asked for there"
            )
        if before and (missing := sorted(self._expected() - rungs.keys())):
            _logger.warning(
                "the training in %s went on after a kill, and told no metrics after step %s, as "
                "other runs do: its trial lacks these rungs. A command that goes on from a "
                "checkpoint should write the line of that step again",
                folder,
                ", ".join(map(str, missing)),
            )
        about = {"weights": dict(weights), "given": dict(converted), "unit": str(program.unit)}
        self._write(folder, about | {"repeat": repeat}, rungs, _seconds(folder))
        return replace(_read(folder), reused=False)

    def _expected(self) -> set[int]:
        """The rungs of a task's own run that was trained, if there is one."""
        for weights in alone_weights(self._program.names).values():
            folder = self.folder(weights)
            if (folder / _FINISHED).exists() and (found := _read(folder)).given is None:
                return set(found.rungs)
        return set()

    def _write(self, folder: Path, about: Mapping[str, Any], rungs: Rungs, seconds: float) -> None:
        numbers = {  # JSON has neither NaN nor infinity
            step: {task: v if math.isfinite(v) else None for task, v in row.items()}
            for step, row in rungs.items()
        }
        end = {"rungs": numbers, "steps": self._program.steps, "seconds": seconds}
        write_json(folder / _FINISHED, {**about, **end})


def _read(folder: Path) -> FinishedRun:
    about = json.loads((folder / _FINISHED).read_text(encoding="utf-8"))
    rungs = {
        int(step): {task: math.nan if value is None else value for task, value in row.items()}
        for step, row in about["rungs"].items()
    }
    steps, seconds, given = about["steps"], about["seconds"], about.get("checkpoint")
    return FinishedRun(folder, rungs, steps, seconds, True, given)


def _seconds(folder: Path) -> float:
    """Seconds that earlier calls took, of what a kill has left of them."""
    try:
        return float(json.loads((folder / _SECONDS).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return 0.0
