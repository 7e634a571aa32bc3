"""Finished and unfinished finetunes on disk, found by what they are: the same run is done once."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from torch import Tensor

from optuna_merge._files import canonical_json, remove_leftovers, sha256_text
from optuna_merge._tensors import load_tensors, save_tensors
from optuna_merge._turns import models_turn
from optuna_merge.exceptions import CorruptFileError
from optuna_merge.finetuning._loop import OnRung, finetune
from optuna_merge.finetuning._settings import FinetuneSettings
from optuna_merge.models import MultitaskModel
from optuna_merge.tasks import Evaluation, Task

_logger = logging.getLogger(__name__)

_CURVATURE = "curvature/"
"""What the names of IVON's curvature begin with in a run's file; no parameter's name does."""


@dataclass(frozen=True)
class FinishedRun:
    """A finetune that ran to its end.

    Attributes:
        path: Its file; the trained parameters by name, and the curvature of a run with IVON.
        rungs: Evaluations of all tasks on validation data after each rung's step.
        steps: Steps trained over the whole run.
        seconds: Time that they took.
        reused: It was there already: nothing was trained by this call.
    """

    path: Path
    rungs: dict[int, dict[str, Evaluation]]
    steps: int
    seconds: float
    reused: bool

    @property
    def evaluations(self) -> dict[str, Evaluation]:
        """Of all tasks on validation data, at the end."""
        return self.rungs[self.steps]

    def parameters(self) -> dict[str, Tensor]:
        """The trained parameters by name, their hash checked."""
        tensors = load_tensors(self.path)[0]
        return {n: tensor for n, tensor in tensors.items() if not n.startswith(_CURVATURE)}

    def curvature(self) -> dict[str, Tensor]:
        """IVON's estimate of the curvature of the trained parameters by name; see `IVON`.

        Raises:
            ValueError: the run was not one with IVON.
        """
        tensors = load_tensors(self.path)[0]
        found = {
            name.removeprefix(_CURVATURE): tensor
            for name, tensor in tensors.items()
            if name.startswith(_CURVATURE)
        }
        if not found:
            raise ValueError(
                f"{self.path} holds no curvature: the run was not with "
                f"FinetuneSettings(optimizer='ivon')"
            )
        return found


@dataclass(frozen=True)
class Start:
    """Where a finetune starts, if not from the model's initial parameters.

    Attributes:
        key: Identifies the parameters.
        parameters: Gives them by name, heads of tasks without weight included; called only if the
            run is not found finished.
    """

    key: str
    parameters: Callable[[], Mapping[str, Tensor]]


class FinetuneStore:
    """A folder of finetunes, each under the hash of its definition, settings and task weights.

    A run that is there is not repeated: a task's own run is also the truth of the weights that
    are one for this task, and a run that was killed goes on from its checkpoint, whichever trial
    asks for it. Processes of one machine that want the same run wait for each other, and threads
    of one process take turns, whatever they want: they train one model.

    Args:
        folder: Where; is made.
        key: Identifies tasks, data and body.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._folder = folder
        self._key = key

    @property
    def folder(self) -> Path:
        """Where the finetunes are."""
        return self._folder

    @property
    def key(self) -> str:
        """What identifies tasks, data and body."""
        return self._key

    def path(
        self,
        weights: Mapping[str, float],
        settings: FinetuneSettings,
        start: Start | None = None,
    ) -> Path:
        """File of the finished run."""
        numbers = {name: float(weight) for name, weight in weights.items()}  # 1 is 1.0
        described = [self._key, numbers, settings.describe()]
        described += [] if start is None else [start.key]
        return self._folder / sha256_text(canonical_json(described))[:24] / "model.safetensors"

    def find(
        self,
        weights: Mapping[str, float],
        settings: FinetuneSettings,
        start: Start | None = None,
    ) -> FinishedRun | None:
        """The finished run, or None if there is none."""
        path = self.path(weights, settings, start)
        try:
            metadata = load_tensors(path)[1]  # all of it: a damaged run is trained again
        except FileNotFoundError:
            return None
        except CorruptFileError as error:
            _logger.warning("training again: %s", error)
            return None
        if not {"rungs", "steps", "seconds"} <= metadata.keys():
            _logger.warning("training again: %s is no finished finetune", path)
            return None
        rungs = {
            int(step): {name: Evaluation.from_json(value) for name, value in evaluations.items()}
            for step, evaluations in json.loads(metadata["rungs"]).items()
        }
        return FinishedRun(
            path, rungs, int(metadata["steps"]), float(metadata["seconds"]), reused=True
        )

    @models_turn()
    def run(
        self,
        model: MultitaskModel,
        tasks: Sequence[Task],
        weights: Mapping[str, float],
        settings: FinetuneSettings,
        *,
        start: Start | None = None,
        on_rung: OnRung | None = None,
        progress: str | None = None,
    ) -> FinishedRun:
        """Finetune at the weights unless that was done; see `finetune` for the arguments.

        The model's parameters are undefined afterwards where the run was reused.
        """
        path = self.path(weights, settings, start)
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint = path.with_name("checkpoint.safetensors")
        with FileLock(path.parent / "lock"):
            remove_leftovers(path)
            remove_leftovers(checkpoint)
            found = self.find(weights, settings, start)
            if found is not None:
                for step, evaluations in sorted(found.rungs.items()):
                    if on_rung is not None:
                        on_rung(step, evaluations)
                return found
            rungs: dict[int, dict[str, Evaluation]] = {}

            def remember(step: int, evaluations: dict[str, Evaluation]) -> None:
                rungs[step] = evaluations
                if on_rung is not None:
                    on_rung(step, evaluations)

            result = finetune(
                model,
                tasks,
                weights,
                settings,
                start=None if start is None else start.parameters(),
                checkpoint=checkpoint,
                key=self._key if start is None else f"{self._key} {start.key}",
                on_rung=remember,
                progress=progress,
            )
            metadata = {
                "kind": "optuna_merge finetune",
                "weights": json.dumps(dict(weights)),
                "rungs": json.dumps(
                    {
                        step: {name: e.to_json() for name, e in evaluations.items()}
                        for step, evaluations in rungs.items()
                    }
                ),
                "steps": str(result.steps),
                "seconds": repr(result.seconds),
            }
            # Heads without weight are the model's own fresh ones, or else the start's.
            active = [n for n, weight in weights.items() if weight > 0 or start is not None]
            tensors = model.state(model.trained_names(active))
            for name, tensor in (result.curvature or {}).items():
                tensors[_CURVATURE + name] = tensor
            save_tensors(tensors, path, metadata)
            checkpoint.unlink(missing_ok=True)
            return FinishedRun(path, rungs, result.steps, result.seconds, reused=False)
