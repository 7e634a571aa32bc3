"""Finetunes by a command: a script, a launcher, any program that trains and evaluates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna_merge.fitting import Report
from optuna_merge.trainers._lines import MetricLines, by_task, last_object
from optuna_merge.trainers._merged_checkpoints import (
    check_alike,
    checkpoint_hash,
    merge_checkpoints,
)
from optuna_merge.trainers._process import follow, output_of
from optuna_merge.trainers._program import ANCHOR, Previews, Run, factors
from optuna_merge.trainers._scratch import scratch_folder
from optuna_merge.trainers._template import Template
from optuna_merge.trainers._units import WeightUnit


@dataclass(frozen=True)
class CommandProgram:
    """A `Program`: a command that trains, another that evaluates; see `from_command`."""

    training: Template
    evaluation: Template
    names: tuple[str, ...]
    metric: str
    steps: int
    unit: WeightUnit
    checkpoint: str
    seed: int
    time_limit: float | None
    grace: float
    about: Mapping[str, Any]
    scratch: Path

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("tasks is empty; expected the tasks' names")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"task names must differ, got {list(self.names)}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if "{task}" not in self.metric and len(self.names) > 1:
            raise ValueError(
                f"metric {self.metric!r} is one for all tasks; expected '{{task}}' in it"
            )
        if Path(self.checkpoint).name != self.checkpoint:
            raise ValueError(f"checkpoint {self.checkpoint!r} must be a name in the run's folder")

    def describe(self) -> Mapping[str, Any]:
        """The commands as they were given, and what the user has said besides."""
        return {
            "train": self.training.arguments,
            "evaluate": self.evaluation.arguments,
            "metric": self.metric,
            "checkpoint": self.checkpoint,
            "seed": self.seed,
            "about": dict(self.about),
        }

    def describe_task(self, task: str) -> Any:
        """Nothing: a command knows its data itself."""
        return task

    def train(self, run: Run, report: Report) -> None:
        """Run the command; what wrote no metrics at its end is evaluated by the other one."""
        lines = MetricLines(run.folder, self.names, self.metric)
        told: set[int] = set()

        def look() -> None:
            for step, metrics in lines.new():
                if step not in told:  # again, where it went on from an earlier checkpoint
                    told.add(step)
                    report(step, metrics)

        checkpoint = self.model(run.folder)
        arguments = self.training.filled(
            run.converted,
            folder=run.folder,
            checkpoint=checkpoint,
            seed=self.seed + run.repeat,
            steps=self.steps,
        )
        limits: dict[str, Any] = {"time_limit": self.time_limit, "grace": self.grace}
        follow(arguments, run.folder, look, begin=lines.mend, **limits)
        checkpoint_hash(checkpoint)  # to know now that it is there
        if self.steps not in told:
            report(self.steps, self._evaluated(checkpoint, run.folder, run.converted))

    def model(self, folder: Path) -> Path:
        """The run's checkpoint."""
        return folder / self.checkpoint

    def adopt(self, run: Run, path: Path) -> Mapping[str, float]:
        """Link the checkpoint into the folder, and evaluate it there."""
        checkpoint = self.model(run.folder)
        if path.is_file() != (checkpoint.suffix == ".safetensors"):
            raise ValueError(
                f"runs: {path} is a {'file' if path.is_file() else 'folder'}, but the command's "
                f"checkpoints are called {self.checkpoint!r}; expected files if that ends with "
                f".safetensors, else folders"
            )
        checkpoint_hash(path)  # to know now that it is one
        checkpoint.unlink(missing_ok=True)  # of a call that was killed
        checkpoint.symlink_to(path.resolve(), target_is_directory=path.is_dir())
        return self._evaluated(checkpoint, run.folder, run.converted)

    def previews(self, runs: Mapping[str, Path], anchor: Path | None, folder: Path) -> Previews:
        """Of averages of the task runs' checkpoints, that the other command evaluates."""
        paths = {task: self.model(run) for task, run in runs.items()}
        hashes = {task: checkpoint_hash(path) for task, path in paths.items()}
        known = None
        if anchor is not None:
            paths[ANCHOR] = self.model(anchor)
            known = checkpoint_hash(paths[ANCHOR])
        check_alike(paths)

        def metrics(weights: Mapping[str, float]) -> Mapping[str, float]:
            with scratch_folder(self.scratch) as place:
                merged = self.model(place)
                merge_checkpoints(paths, factors(weights, anchored=anchor is not None), merged)
                return self._evaluated(merged, place, weights)

        return Previews(metrics, {"family": "isotropic"}, hashes, known)

    def _evaluated(
        self, checkpoint: Path, folder: Path, weights: Mapping[str, float]
    ) -> dict[str, float]:
        arguments = self.evaluation.filled(
            weights, folder=folder, checkpoint=checkpoint, seed=self.seed, steps=self.steps
        )
        log = folder / "evaluation-log.txt"
        text = output_of(arguments, log, time_limit=self.time_limit, grace=self.grace)
        where = f"the evaluation {' '.join(arguments)}"
        return by_task(last_object(text, where), self.names, self.metric, where)
