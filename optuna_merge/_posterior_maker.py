"""The posteriors of all tasks, made from their own runs or found in the working folder."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from filelock import FileLock
from torch import Tensor

from optuna_merge._files import canonical_json, sha256_text, write_json
from optuna_merge._tensors import HASH, content_hash, load_tensors, read_metadata, save_tensors
from optuna_merge.damping import Damping, candidates, choose, trial_weightings
from optuna_merge.definition import StudyDefinition
from optuna_merge.exceptions import CorruptFileError
from optuna_merge.models import MultitaskModel
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
from optuna_merge.tasks._data import to_device, unpadded_batches

_logger = logging.getLogger(__name__)

_Loaded = TypeVar("_Loaded")


@dataclass(frozen=True)
class MadePosteriors:
    """Posteriors by task, and what there is to know of them.

    Attributes:
        posteriors: By task.
        hashes: Their files' content hashes, by task.
        damping: What was added to the curvature; None for isotropic posteriors.
        seconds: What they cost when they were made.
        files: All files that they are made of.
    """

    posteriors: dict[str, Posterior]
    hashes: dict[str, str]
    damping: Damping | None
    seconds: float
    files: tuple[Path, ...]


class PosteriorMaker:
    """Makes posteriors; what is in the folder and matches is not made again.

    Args:
        definition: Gives the settings.
        model: The model, for curvature and for the previews that choose the damping.
        tasks: The tasks, in order.
        means: Shared parameters of each task's own run.
        heads: Parameters of each task's own head.
        folder: Where the files are.
        key: Identifies tasks, data and body.
    """

    def __init__(
        self,
        definition: StudyDefinition,
        model: MultitaskModel,
        tasks: Sequence[Task],
        means: Mapping[str, dict[str, Tensor]],
        heads: Mapping[str, dict[str, Tensor]],
        folder: Path,
        key: str,
    ) -> None:
        self._settings = definition.posterior
        self._batch_size = definition.finetuning.evaluation_batch_size
        self._model = model
        self._tasks = tasks
        self._means = means
        self._heads = heads
        self._folder = folder
        self._states = {
            t.name: content_hash(means[t.name] | heads[t.name], {"key": key}) for t in tasks
        }
        self._key = _short_hash([self._states, asdict(self._settings)])

    def make(self) -> MadePosteriors:
        """Make what is missing, one process at a time, and load all."""
        settings = self._settings
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / f"{self._key}.lock"):
            curvatures: dict[str, dict[str, Tensor]] = {}
            files: list[Path] = []
            seconds = 0.0
            damping = None
            if settings.family == "diagonal":
                for task in self._tasks:
                    path, curvatures[task.name], spent = self._curvature(task)
                    files.append(path)
                    seconds += spent
                path, damping = self._damping(curvatures)
                files += [path] if path.exists() else []
                seconds += damping.seconds
            posteriors, hashes = {}, {}
            for task in self._tasks:
                path = self._folder / f"{task.name}-{self._key}.safetensors"
                curvature = curvatures.get(task.name)
                posteriors[task.name] = self._posterior(task.name, path, curvature, damping)
                hashes[task.name] = read_metadata(path)[HASH]
                files.append(path)
        return MadePosteriors(posteriors, hashes, damping, seconds, tuple(files))

    def _posterior(
        self,
        task: str,
        path: Path,
        curvature: Mapping[str, Tensor] | None,
        damping: Damping | None,
    ) -> Posterior:
        mean = self._means[task]
        posterior = _load_sound(path, load_posterior)
        if posterior is None:
            metadata = {"task": task, "made_from": self._states[task]}
            if curvature is None or damping is None:
                posterior = IsotropicGaussian(mean, 1.0)
            else:
                posterior = _damped(mean, curvature, damping.value)
                metadata["damping"] = repr(damping.value)
            save_posterior(posterior, path, metadata)
        _check_shapes(task, path, posterior.mean, mean)
        return posterior

    def _curvature(self, task: Task) -> tuple[Path, dict[str, Tensor], float]:
        """Mean squared per-example gradient of the shared parameters at the task's own run."""
        settings = self._settings
        # The damping changes posteriors, but not the curvature below them.
        key = _short_hash([self._states[task.name], settings.examples, settings.seed])
        path = self._folder / f"curvature-{task.name}-{key}.safetensors"
        found = _load_sound(path, load_tensors)
        if found is not None:
            tensors, metadata = found
            _check_shapes(task.name, path, tensors, self._means[task.name])
            return path, tensors, float(metadata["seconds"])
        started = time.perf_counter()
        model, data, loss = self._model, task.data("train"), task.loss
        assert isinstance(loss, Loss)
        model.load(self._means[task.name] | self._heads[task.name], source=f"task {task.name!r}")
        model.eval()
        generator = torch.Generator().manual_seed(settings.seed)
        rows = torch.randperm(len(data), generator=generator)[: settings.examples].tolist()
        curvature = squared_gradients(
            lambda params, batch: model.functional(params, batch, task.name),
            model.state(model.shared_names()),
            (
                to_device(batch, model.device)
                for batch in unpadded_batches(data, rows, settings.chunk_size)
            ),
            loss=loss.for_curvature or loss,
            sample_labels=loss.sample_labels,
            chunk_size=settings.chunk_size,
            generator=generator,
        )
        seconds = time.perf_counter() - started
        save_tensors(curvature, path, {"task": task.name, "seconds": repr(seconds)})
        return path, curvature, seconds

    def _damping(self, curvatures: Mapping[str, Mapping[str, Tensor]]) -> tuple[Path, Damping]:
        path = self._folder / f"damping-{self._key}.json"
        if self._settings.damping is not None:
            return path, Damping(self._settings.damping, {}, 0.0)
        found = _load_sound(path, _load_damping)
        if found is not None:
            return path, found
        started = time.perf_counter()
        value, sweep = choose(
            candidates(curvatures), lambda delta: self._weighted_loss(curvatures, delta)
        )
        damping = Damping(value, sweep, time.perf_counter() - started)
        # JSON has no infinity: a loss that wasn't finite is null.
        noted = {repr(d): loss if math.isfinite(loss) else None for d, loss in sweep.items()}
        write_json(path, {"value": value, "sweep": noted, "seconds": damping.seconds})
        _logger.info("damping %.3g chosen among %d on validation loss", value, len(sweep))
        return path, damping

    def _weighted_loss(
        self, curvatures: Mapping[str, Mapping[str, Tensor]], delta: float
    ) -> float:
        """Mean over some interior weights of the merge's weighted validation loss."""
        posteriors = {t: _damped(self._means[t], h, delta) for t, h in curvatures.items()}
        previewer = Previewer(
            self._model,
            self._tasks,
            posteriors,
            self._heads,
            batch_size=self._batch_size,
            limit=self._settings.damping_examples,
        )
        weightings = trial_weightings([task.name for task in self._tasks])
        total = 0.0
        for weights in weightings:
            preview = previewer(weights)
            total += sum(w * preview.evaluations[t].loss.value for t, w in weights.items())
        # A damping whose merges overflow is the worst, not an error.
        return total / len(weightings) if math.isfinite(total) else math.inf


def _damped(
    mean: dict[str, Tensor], curvature: Mapping[str, Tensor], delta: float
) -> DiagonalGaussian:
    # In the mean's order: a curvature that was read from its file may come in another, and the
    # posterior's hash is to be the same.
    return DiagonalGaussian(mean, {name: curvature[name] + delta for name in mean})


def _load_damping(path: Path) -> Damping:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        sweep = {
            float(value): math.inf if loss is None else float(loss)
            for value, loss in found["sweep"].items()
        }
        return Damping(float(found["value"]), sweep, float(found["seconds"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFileError(f"{path} holds no choice of damping ({error!r})") from error


def _short_hash(value: object) -> str:
    return sha256_text(canonical_json(value))[:24]


def _load_sound(path: Path, load: Callable[[Path], _Loaded]) -> _Loaded | None:
    """What the file holds; None if there is none or it is damaged, so that it is made again."""
    try:
        return load(path)
    except FileNotFoundError:
        return None
    except CorruptFileError as error:
        _logger.warning("making it again: %s", error)
        return None


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
