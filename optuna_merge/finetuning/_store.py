"""Finished and unfinished finetunes on disk, found by what they are: the same run is done once."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from torch import Tensor

from optuna_merge._base.files import canonical_json, remove_leftovers, short_hash
from optuna_merge._base.tensors import load_sound, load_tensors, save_tensors
from optuna_merge._base.turns import models_turn
from optuna_merge.finetuning._loop import OnRung, finetune
from optuna_merge.finetuning._settings import FinetuneSettings
from optuna_merge.models import MultitaskModel, evaluate_tasks, task_batches
from optuna_merge.tasks import Evaluation, Task

_logger = logging.getLogger(__name__)

_CURVATURE = "curvature/"
"""What the names of IVON's curvature begin with in a run's file; no parameter's name does."""

_EVALUATION = "evaluation"
"""Key of an evaluation in the metadata of its file, which holds no tensors."""


@dataclass(frozen=True)
class FinishedRun:
    """A finetune that ran to its end.

    Attributes:
        path: Its file; the trained parameters by name, and the curvature of a run with IVON.
        rungs: Evaluations of all tasks on validation data after each rung's step; after the last
            one only, if there are tasks that were not there when the run was trained.
        steps: Steps trained over the whole run.
        seconds: Time that they took.
        reused: It was there already: nothing was trained by this call.
        files: All that it is read from: `path`, and evaluations on such tasks.
        given: Where the checkpoint is that was given for it; None: it was trained.
    """

    path: Path
    rungs: dict[int, dict[str, Evaluation]]
    steps: int
    seconds: float
    reused: bool
    files: tuple[Path, ...]
    given: str | None = None

    @property
    def evaluations(self) -> dict[str, Evaluation]:
        """Of all tasks on validation data, at the end."""
        return self.rungs[self.steps]

    def parameters(self) -> dict[str, Tensor]:
        """The trained parameters by name, their hash checked."""
        tensors = load_tensors(self.path)[0]
        return {n: tensor for n, tensor in tensors.items() if not n.startswith(_CURVATURE)}

    def curvature(self) -> dict[str, Tensor]:
        """IVON's estimate of the curvature of the trained parameters by name; see `IVON`."""
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


@dataclass(frozen=True)
class Given:
    """A checkpoint that stands for a task's own run; with other settings, that is trained."""

    path: Path
    key: str
    settings: FinetuneSettings
    parameters: Callable[[MultitaskModel], Mapping[str, Tensor]]


class FinetuneStore:
    """A folder of finetunes, each under the hash of its tasks, settings and task weights.

    A run that is there is not repeated, and one that was killed goes on from its checkpoint,
    whichever trial asks for it. Processes of one machine that want the same run wait for each
    other, and threads of one process take turns: they train one model. A task's own run is under
    the hash of this task alone, so that studies of other tasks beside it find it. Where these were
    not there when it was trained, its end is evaluated on them.

    Args:
        folder: Where; is made.
        keys: By task, in order, what identifies the task, its data, and what it uses of the body.
        given: By task, a checkpoint that stands for its own run, which is not trained then.
    """

    def __init__(
        self, folder: Path, keys: Mapping[str, str], given: Mapping[str, Given] | None = None
    ) -> None:
        self.folder, self.keys, self._given = folder, dict(keys), dict(given or {})

    def path(
        self, weights: Mapping[str, float], settings: FinetuneSettings, start: Start | None = None
    ) -> Path:
        """File of the finished run."""
        numbers = {name: float(weight) for name, weight in weights.items()}  # 1 is 1.0
        active = [name for name, number in numbers.items() if number != 0]
        if len(active) == 1 and start is None:
            numbers = {active[0]: numbers[active[0]]}
        keys = [[name, key] for name, key in self.keys.items() if name in numbers]
        described = [keys, numbers, settings.describe()]
        described += [] if start is None else [start.key]
        given = self._given_at(weights, settings, start)
        described += [] if given is None else [given.key]
        return self.folder / short_hash(described) / "model.safetensors"

    def _given_at(
        self, weights: Mapping[str, float], settings: FinetuneSettings, start: Start | None
    ) -> Given | None:
        """The checkpoint that stands for this run; None: it is trained."""
        active = [name for name, weight in weights.items() if weight != 0]
        found = self._given.get(active[0]) if len(active) == 1 and start is None else None
        return found if found is not None and found.settings == settings else None

    def test_path(self, run: FinishedRun) -> Path:
        """Where metrics of the run on the tasks' test data are kept, once they are known."""
        return run.path.with_name(f"test-{short_hash(self.keys)}.json")

    def find(
        self, weights: Mapping[str, float], settings: FinetuneSettings, start: Start | None = None
    ) -> FinishedRun | None:
        """The finished run, evaluated on all tasks; None if there is none."""
        found = self._read(self.path(weights, settings, start))
        return found if found is not None and len(found.evaluations) == len(self.keys) else None

    def _read(self, path: Path) -> FinishedRun | None:
        """The finished run with what is known of it on this store's tasks."""
        found = load_sound(path, load_tensors, "training again")  # all of it, not its head alone
        if found is None:
            return None
        metadata = found[1]
        if not {"keys", "rungs", "steps", "seconds"} <= metadata.keys():
            _logger.warning("training again: %s is no finished finetune", path)
            return None
        steps, seconds = int(metadata["steps"]), float(metadata["seconds"])
        then, files = json.loads(metadata["keys"]), [path]
        known = {
            int(step): {n: Evaluation.from_json(value) for n, value in evaluations.items()}
            for step, evaluations in json.loads(metadata["rungs"]).items()
        }
        added = [name for name, key in self.keys.items() if then.get(name) != key]
        for name in added:
            known[steps].pop(name, None)  # of a task that was other than it is now
            file = self._evaluation_path(path, name)
            if (noted := load_sound(file, load_tensors, "evaluating again")) is not None:
                known[steps][name] = Evaluation.from_json(json.loads(noted[1][_EVALUATION]))
                files.append(file)
        rungs = {
            step: {name: evaluations[name] for name in self.keys if name in evaluations}
            for step, evaluations in known.items()
            if step == steps or not added
        }
        given = metadata.get("given")
        return FinishedRun(path, rungs, steps, seconds, True, tuple(files), given)

    def _evaluation_path(self, path: Path, task: str) -> Path:
        return path.with_name(f"evaluation-{task}-{short_hash(self.keys[task])}.safetensors")

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
            found = self._read(path)
            if found is None and (given := self._given_at(weights, settings, start)) is not None:
                self._adopt(given, path, model, tasks, weights)
                found = self._read(path)
            if found is not None:
                found = self._evaluated(found, model, tasks, settings)
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
                key=canonical_json([self.keys, None if start is None else start.key]),
                on_rung=remember,
                progress=progress,
            )
            # Heads without weight are the model's own fresh ones, or else the start's.
            active = [n for n, weight in weights.items() if weight > 0 or start is not None]
            tensors = model.state(model.trained_names(active))
            for name, tensor in (result.curvature or {}).items():
                tensors[_CURVATURE + name] = tensor
            steps, seconds = result.steps, result.seconds
            _write_run(path, tensors, self.keys, weights, rungs, steps, seconds)
            checkpoint.unlink(missing_ok=True)
            return FinishedRun(path, rungs, steps, seconds, False, (path,))

    def _adopt(
        self,
        given: Given,
        path: Path,
        model: MultitaskModel,
        tasks: Sequence[Task],
        weights: Mapping[str, float],
    ) -> None:
        """Make a finished run of the given checkpoint, which cost nothing."""
        settings = given.settings
        model.reset()
        model.load(given.parameters(model), source=str(given.path))
        batches = task_batches(model, tasks, batch_size=settings.evaluation_batch_size)
        found = evaluate_tasks(model, tasks, batches)
        active = [name for name, weight in weights.items() if weight > 0]
        tensors = model.state(model.trained_names(active))
        rungs, where = {settings.steps: found}, str(given.path.absolute())
        _write_run(path, tensors, self.keys, weights, rungs, settings.steps, 0.0, given=where)

    def _evaluated(
        self,
        found: FinishedRun,
        model: MultitaskModel,
        tasks: Sequence[Task],
        settings: FinetuneSettings,
    ) -> FinishedRun:
        """The run with its end evaluated on all tasks; what was not known is a file of its own."""
        new = [task for task in tasks if task.name not in found.evaluations]
        if not new:
            return found
        model.reset()
        model.load(found.parameters(), source=str(found.path))
        batches = task_batches(model, new, batch_size=settings.evaluation_batch_size)
        for name, evaluation in evaluate_tasks(model, new, batches).items():
            metadata = {_EVALUATION: json.dumps(evaluation.to_json())}
            save_tensors({}, self._evaluation_path(found.path, name), metadata)
        whole = self._read(found.path)
        assert whole is not None
        return whole


def _write_run(
    path: Path,
    tensors: Mapping[str, Tensor],
    keys: Mapping[str, str],
    weights: Mapping[str, float],
    rungs: Mapping[int, Mapping[str, Evaluation]],
    steps: int,
    seconds: float,
    **more: str,
) -> None:
    numbers = {step: {n: e.to_json() for n, e in found.items()} for step, found in rungs.items()}
    metadata = {
        "kind": "optuna_merge finetune",
        "weights": json.dumps(dict(weights)),
        "keys": json.dumps(keys),
        "rungs": json.dumps(numbers),
        "steps": str(steps),
        "seconds": repr(seconds),
        **more,
    }
    save_tensors(tensors, path, metadata)
