"""Checkpoints that are there already and stand for the tasks' own runs."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna_merge._base.checkpoint_files import tensor_files
from optuna_merge._base.files import json_hash, sha256_file


@dataclass(frozen=True)
class GivenRun:
    """A checkpoint that was finetuned on one task before, by any program.

    Attributes:
        path: A folder as `save_pretrained` or a Trainer writes it, a LoRA adapter's folder, or a
            safetensors file.
        curvature: Where the curvature comes from that its posterior needs: "loss", the model's
            own loss on the task's training data; "optimizer", the second moments of Adam in
            `optimizer.pt` of the folder; or the path of a safetensors file with a tensor a
            parameter.
        batch_size: Of "optimizer": examples of one optimizer step of that run; None: as many as
            the Trainer here takes.
        any_base: Take it even if its matrices have nothing in common with the model's, which is
            refused otherwise.

    Raises:
        ValueError: a batch size below 1, or for curvature that has none.
    """

    path: str | os.PathLike[str]
    curvature: str | os.PathLike[str] = "loss"
    batch_size: int | None = None
    any_base: bool = False

    def __post_init__(self) -> None:
        if self.batch_size is not None and (self.curvature != "optimizer" or self.batch_size < 1):
            raise ValueError(
                f"batch_size is {self.batch_size}; expected at least 1, and only with "
                f"curvature='optimizer', of which it is the number of examples of one step"
            )


Runs = Mapping[str, str | os.PathLike[str] | GivenRun]


def given_runs(runs: Runs | None, tasks: Sequence[str]) -> dict[str, GivenRun]:
    """Checkpoints by task, seen to be there."""
    found: dict[str, GivenRun] = {}
    for task, run in (runs or {}).items():
        if task not in tasks:
            close = difflib.get_close_matches(task, tasks, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(tasks)}"
            raise ValueError(f"runs: no task is called {task!r}; {hint}")
        run = run if isinstance(run, GivenRun) else GivenRun(run)
        files: list[tuple[str, Any]] = [("checkpoint", run.path)]
        if run.curvature not in ("loss", "optimizer"):
            files.append(("curvature", run.curvature))
        for what, path in files:
            if not Path(path).exists():
                raise FileNotFoundError(
                    f"runs: task {task!r}: there is no {what} {os.fspath(path)!r} (looked for in "
                    f"{Path.cwd()}); expected a folder or a file of tensors"
                )
        found[task] = run
    return found


def run_hash(task: str, run: GivenRun) -> str:
    """A hash of the files of tensors of a given checkpoint."""
    try:
        files = tensor_files(Path(run.path), pickles=True)
        return json_hash([sha256_file(file) for file in files])
    except (OSError, ValueError) as error:
        raise ValueError(f"runs: task {task!r}: {run.path} is no checkpoint: {error}") from error
