"""From tasks to posteriors: each task finetuned once, its curvature taken, the damping chosen."""

from __future__ import annotations

import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from optuna_merge._files import canonical_json, sha256_text, write_json
from optuna_merge._tensors import content_hash, load_tensors, save_tensors
from optuna_merge.damping import Damping, candidates, choose, trial_weightings
from optuna_merge.definition import StudyDefinition
from optuna_merge.exceptions import CorruptFileError
from optuna_merge.finetuning import FinetuneStore, FinishedRun
from optuna_merge.models import MultitaskModel, cache_trunk
from optuna_merge.posteriors import (
    DiagonalGaussian,
    IsotropicGaussian,
    Posterior,
    load_posterior,
    save_posterior,
    squared_gradients,
)
from optuna_merge.previews import Previewer
from optuna_merge.tasks import Loss, Task
from optuna_merge.tasks._data import to_device

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FittedStudy:
    """A definition with its task runs and posteriors: what previews and finetunes start from.

    Attributes:
        definition: What was fitted.
        model: The resident model.
        tasks: The tasks as they run: on the frozen trunk's cached output where that applies.
        runs: The task's own finetune, by task.
        previewer: Scores merges of the posteriors.
        damping: The damping; None for isotropic posteriors.
        costs: Training steps and seconds, by what they were spent on.
        parts: The full definition, posteriors included, as JSON values.
        store: All finetunes of this definition.
    """

    definition: StudyDefinition
    model: MultitaskModel
    tasks: tuple[Task, ...]
    runs: dict[str, FinishedRun]
    previewer: Previewer
    damping: Damping | None
    costs: dict[str, float]
    parts: dict[str, Any]
    store: FinetuneStore

    @property
    def fingerprint(self) -> str:
        """One hash of tasks, data, body, settings and posteriors."""
        return sha256_text(canonical_json(self.parts))

    @property
    def alone(self) -> dict[str, float]:
        """Each task's metric on validation data when it is finetuned alone."""
        return {name: run.evaluations[name].metric.value for name, run in self.runs.items()}

    def score(self, metrics: Mapping[str, float]) -> float:
        """The definition's score of the tasks' metrics."""
        return self.definition.score_of(metrics, self.alone)


def fit(definition: StudyDefinition, workdir: str | Path, *, progress: bool = True) -> FittedStudy:
    """Finetune each task alone and make its posterior; what is there and matches is not repeated.

    Every result is a file in the working folder, under the hash of what it was made from. An
    interrupted fit goes on where it stopped, the training run from its last checkpoint.

    Args:
        definition: What to fit.
        workdir: The working folder; is made.
        progress: Show progress bars.

    Raises:
        OSError: the folder can't be written.
    """
    workdir = Path(workdir)
    check_writable(workdir)
    model = definition.model
    parts = definition.describe()
    key = sha256_text(canonical_json({name: parts[name] for name in ("tasks", "body")}))
    tasks = cache_trunk(
        model, definition.tasks, batch_size=definition.finetuning.evaluation_batch_size
    )
    store = FinetuneStore(workdir / "finetunes", key)
    runs: dict[str, FinishedRun] = {}
    for task in tasks:
        alone = {other.name: float(other is task) for other in tasks}
        title = f"task {task.name}" if progress else None
        runs[task.name] = store.run(model, tasks, alone, definition.finetuning, progress=title)
    states = {name: run.parameters() for name, run in runs.items()}
    shared = model.shared_names()
    means = {name: {n: state[n] for n in shared} for name, state in states.items()}
    heads = {name: {n: state[n] for n in model.own_names(name)} for name, state in states.items()}

    maker = _PosteriorMaker(definition, model, tasks, means, heads, workdir, key)
    posteriors, damping, seconds = maker.make()
    hashes = {task.name: maker.hashes[task.name] for task in tasks}
    parts |= {
        "posteriors": hashes,
        "heads": {name: content_hash(tensors, {}) for name, tensors in heads.items()},
    }
    costs = {
        "task_run_steps": sum(run.steps for run in runs.values()),
        "task_run_seconds": sum(run.seconds for run in runs.values()),
        "posterior_seconds": seconds,
    }
    previewer = Previewer(
        model, tasks, posteriors, heads, batch_size=definition.finetuning.evaluation_batch_size
    )
    return FittedStudy(definition, model, tasks, runs, previewer, damping, costs, parts, store)


class _PosteriorMaker:
    """Makes the posteriors of all tasks, or finds them in the working folder."""

    def __init__(
        self,
        definition: StudyDefinition,
        model: MultitaskModel,
        tasks: Sequence[Task],
        means: Mapping[str, dict[str, Tensor]],
        heads: Mapping[str, dict[str, Tensor]],
        workdir: Path,
        key: str,
    ) -> None:
        self._settings = definition.posterior
        self._batch_size = definition.finetuning.evaluation_batch_size
        self._model = model
        self._tasks = tasks
        self._means = means
        self._heads = heads
        self._folder = workdir / "posteriors"
        described = asdict(self._settings)
        # The choice of damping changes posteriors, but not the curvature below them.
        curvature = {n: described[n] for n in ("family", "examples", "seed")}
        self._states = {
            t.name: content_hash(means[t.name] | heads[t.name], {"key": key}) for t in tasks
        }
        self._curvature_keys = {
            t.name: sha256_text(canonical_json([self._states[t.name], curvature]))[:24]
            for t in tasks
        }
        self._key = sha256_text(canonical_json([self._states, described]))[:24]
        self.hashes: dict[str, str] = {}

    def make(self) -> tuple[dict[str, Posterior], Damping | None, float]:
        """Posteriors, damping, and the seconds that they cost when they were made."""
        seconds = 0.0
        damping = None
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / f"{self._key}.lock"):
            if self._settings.family == "isotropic":
                build: Callable[[str], Posterior] = lambda t: IsotropicGaussian(  # noqa: E731
                    self._means[t], 1.0
                )
            else:
                curvatures = {}
                for task in self._tasks:
                    curvatures[task.name], spent = self._curvature(task)
                    seconds += spent
                damping = self._damping(curvatures)
                seconds += damping.seconds
                delta = damping.value
                build = lambda t: DiagonalGaussian(  # noqa: E731
                    self._means[t], {n: h + delta for n, h in curvatures[t].items()}
                )
            posteriors = {t.name: self._posterior(t.name, build, damping) for t in self._tasks}
        return posteriors, damping, seconds

    def _posterior(
        self, task: str, build: Callable[[str], Posterior], damping: Damping | None
    ) -> Posterior:
        path = self._folder / f"{task}-{self._key}.safetensors"
        metadata = {"task": task, "made_from": self._states[task]}
        if damping is not None:
            metadata["damping"] = repr(damping.value)
        if not _is_sound(path, load_posterior):
            save_posterior(build(task), path, metadata)
        posterior = load_posterior(path)
        _check_shapes(task, path, posterior.mean, self._means[task])
        self.hashes[task] = load_tensors(path)[1]["sha256"]
        return posterior

    def _curvature(self, task: Task) -> tuple[dict[str, Tensor], float]:
        """Mean squared per-example gradient of the shared parameters at the task's own run."""
        path = (
            self._folder / f"curvature-{task.name}-{self._curvature_keys[task.name]}.safetensors"
        )
        if _is_sound(path, load_tensors):
            tensors, metadata = load_tensors(path)
            _check_shapes(task.name, path, tensors, self._means[task.name])
            return tensors, float(metadata["seconds"])
        started = time.perf_counter()
        model, data, settings = self._model, task.data("train"), self._settings
        loss = task.loss
        assert isinstance(loss, Loss)
        model.load(self._means[task.name] | self._heads[task.name], source=f"task {task.name!r}")
        model.eval()
        generator = torch.Generator().manual_seed(settings.seed)
        rows = torch.randperm(len(data), generator=generator)[: settings.examples].tolist()
        names = model.shared_names()
        curvature = squared_gradients(
            lambda params, batch: model.functional(params, batch, task.name),
            model.state(names),
            (
                to_device(data[rows[start : start + settings.chunk_size]], model.device)
                for start in range(0, len(rows), settings.chunk_size)
            ),
            loss=loss,
            sample_labels=loss.sample_labels,
            chunk_size=settings.chunk_size,
            generator=generator,
        )
        seconds = time.perf_counter() - started
        save_tensors(curvature, path, {"task": task.name, "seconds": repr(seconds)})
        return curvature, seconds

    def _damping(self, curvatures: Mapping[str, Mapping[str, Tensor]]) -> Damping:
        if self._settings.damping is not None:
            return Damping(self._settings.damping, {}, 0.0)
        path = self._folder / f"damping-{self._key}.json"
        try:
            return _read_damping(path)
        except FileNotFoundError:
            pass
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            _logger.warning("choosing the damping again: %s is damaged (%r)", path, error)
        started = time.perf_counter()
        weightings = trial_weightings([task.name for task in self._tasks])

        def weighted_loss(delta: float) -> float:
            posteriors = {
                t: DiagonalGaussian(self._means[t], {n: h + delta for n, h in tensors.items()})
                for t, tensors in curvatures.items()
            }
            previewer = Previewer(
                self._model, self._tasks, posteriors, self._heads, batch_size=self._batch_size
            )
            total = 0.0
            for weights in weightings:
                preview = previewer(weights, limit=self._settings.damping_examples)
                total += sum(w * preview.evaluations[t].loss.value for t, w in weights.items())
            mean = total / len(weightings)
            return mean if math.isfinite(mean) else math.inf

        value, sweep = choose(candidates(curvatures), weighted_loss)
        damping = Damping(value, sweep, time.perf_counter() - started)
        # JSON has no infinity: a loss that wasn't finite is null.
        losses = {repr(k): loss if math.isfinite(loss) else None for k, loss in sweep.items()}
        write_json(path, {"value": value, "sweep": losses, "seconds": damping.seconds})
        _logger.info("damping %.3g chosen among %d on validation loss", value, len(sweep))
        return damping


def check_writable(folder: Path) -> None:
    """Make the folder, and see that a file can be written there.

    Raises:
        OSError: it can't; the message names the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
            file.flush()
    except OSError as error:
        raise type(error)(
            error.errno,
            f"can't write in the working folder {folder}: {error.strerror or error}; give another "
            f"with --workdir, or make room there",
        ) from error


def _read_damping(path: Path) -> Damping:
    found = json.loads(path.read_text())
    sweep = {
        float(value): math.inf if loss is None else float(loss)
        for value, loss in found["sweep"].items()
    }
    return Damping(float(found["value"]), sweep, float(found["seconds"]))


def _is_sound(path: Path, load: Callable[[Path], Any]) -> bool:
    """Whether the file is there and its content hash is right; a damaged one is made again."""
    try:
        load(path)
    except FileNotFoundError:
        return False
    except CorruptFileError as error:
        _logger.warning("making it again: %s", error)
        return False
    return True


def _check_shapes(
    task: str, path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    for name, tensor in expected.items():
        if shapes.get(name) != tuple(tensor.shape):
            raise ValueError(
                f"task {task!r}: {path} has {shapes.get(name, 'no tensor')} for {name!r}, but the "
                f"body's is {tuple(tensor.shape)}; it belongs to another body: use another "
                f"--workdir"
            )
