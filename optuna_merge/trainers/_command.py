"""Finetunes by a command: a script, a launcher, any program that trains and evaluates."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna_merge.fitting import Report
from optuna_merge.trainers._anchored import ANCHOR, factors
from optuna_merge.trainers._lines import MetricLines, by_task, last_object
from optuna_merge.trainers._merged_checkpoints import (
    check_alike,
    checkpoint_hash,
    merge_checkpoints,
)
from optuna_merge.trainers._process import follow, output_of
from optuna_merge.trainers._program import Previews, Run
from optuna_merge.trainers._template import Template
from optuna_merge.trainers._units import WeightUnit


class CommandProgram:
    """A `Program`: a command that trains, another that evaluates checkpoints; see `from_command`."""

    def __init__(
        self,
        train: str | Sequence[str],
        evaluate: str | Sequence[str],
        names: Sequence[str],
        *,
        metric: str,
        steps: int,
        unit: WeightUnit,
        checkpoint: str,
        seed: int,
        time_limit: float | None,
        grace: float,
        about: Mapping[str, Any],
        scratch: Path,
    ) -> None:
        if not names:
            raise ValueError("tasks is empty; expected the tasks' names")
        if len(set(names)) < len(names):
            raise ValueError(f"task names must differ, got {list(names)}")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if "{task}" not in metric and len(names) > 1:
            raise ValueError(f"metric {metric!r} is one for all tasks; expected '{{task}}' in it")
        if Path(checkpoint).name != checkpoint:
            raise ValueError(f"checkpoint {checkpoint!r} must be a name in the run's folder")
        self._train = Template(train, names, ("weights", "weight"))
        self._evaluate = Template(evaluate, names, ("checkpoint",))
        self._names, self._metric, self._steps = tuple(names), metric, steps
        self._unit, self._checkpoint, self._seed = unit, checkpoint, seed
        self._time_limit, self._grace = time_limit, grace
        self._about, self._scratch = dict(about), scratch

    @property
    def names(self) -> tuple[str, ...]:
        """Task names, in order."""
        return self._names

    @property
    def unit(self) -> WeightUnit:
        """What the user says."""
        return self._unit

    @property
    def steps(self) -> int:
        """What the user says."""
        return self._steps

    def describe(self) -> Mapping[str, Any]:
        """The commands as they were given, and what the user has said besides."""
        return {
            "train": self._train.arguments, "evaluate": self._evaluate.arguments,
            "metric": self._metric, "checkpoint": self._checkpoint, "seed": self._seed,
            "about": self._about,
        }  # fmt: skip

    def describe_task(self, task: str) -> Any:
        """Nothing: a command knows its data itself."""
        return task

    def train(self, run: Run, report: Report) -> None:
        """Run the command; what wrote no metrics at its end is evaluated by the other one."""
        lines = MetricLines(run.folder, self._names, self._metric)
        told: set[int] = set()

        def look() -> None:
            for step, metrics in lines.new():
                if step not in told:  # again, where it went on from an earlier checkpoint
                    told.add(step)
                    report(step, metrics)

        checkpoint = run.folder / self._checkpoint
        arguments = self._train.filled(
            run.converted,
            folder=run.folder,
            checkpoint=checkpoint,
            seed=self._seed + run.repeat,
            steps=self._steps,
        )
        follow(
            arguments,
            run.folder,
            look,
            begin=lines.mend,
            time_limit=self._time_limit,
            grace=self._grace,
        )
        checkpoint_hash(checkpoint)  # to know now that it is there
        if self._steps not in told:
            report(self._steps, self._evaluated(checkpoint, run.folder, run.converted))

    def model(self, folder: Path) -> Path:
        """The run's checkpoint."""
        return folder / self._checkpoint

    def adopt(self, run: Run, path: Path) -> Mapping[str, float]:
        """Link the checkpoint into the folder, and evaluate it there."""
        checkpoint = run.folder / self._checkpoint
        if path.is_file() != (checkpoint.suffix == ".safetensors"):
            raise ValueError(
                f"runs: {path} is a {'file' if path.is_file() else 'folder'}, but the command's "
                f"checkpoints are called {self._checkpoint!r}; expected files if that ends with "
                f".safetensors, else folders"
            )
        checkpoint_hash(path)  # to know now that it is one
        checkpoint.unlink(missing_ok=True)  # of a call that was killed
        checkpoint.symlink_to(path.resolve(), target_is_directory=path.is_dir())
        return self._evaluated(checkpoint, run.folder, run.converted)

    def previews(self, runs: Mapping[str, Path], anchor: Path | None, folder: Path) -> Previews:
        """Of averages of the task runs' checkpoints, that the other command evaluates."""
        paths = {task: run / self._checkpoint for task, run in runs.items()}
        hashes = {task: checkpoint_hash(path) for task, path in paths.items()}
        known = None
        if anchor is not None:
            paths[ANCHOR] = anchor / self._checkpoint
            known = checkpoint_hash(paths[ANCHOR])
        check_alike(paths)

        def metrics(weights: Mapping[str, float]) -> Mapping[str, float]:
            self._scratch.mkdir(parents=True, exist_ok=True)
            place = Path(tempfile.mkdtemp(prefix="merge-", dir=self._scratch))
            try:
                each = factors(weights, anchored=anchor is not None)
                merge_checkpoints(paths, each, place / self._checkpoint)
                return self._evaluated(place / self._checkpoint, place, weights)
            finally:
                shutil.rmtree(place)

        return Previews(metrics, {"family": "isotropic"}, hashes, known)

    def _evaluated(
        self, checkpoint: Path, folder: Path, weights: Mapping[str, float]
    ) -> dict[str, float]:
        arguments = self._evaluate.filled(
            weights, folder=folder, checkpoint=checkpoint, seed=self._seed, steps=self._steps
        )
        text = output_of(
            arguments,
            folder / "evaluation-log.txt",
            time_limit=self._time_limit,
            grace=self._grace,
        )
        where = f"the evaluation {' '.join(arguments)}"
        return by_task(last_object(text, where), self._names, self._metric, where)
