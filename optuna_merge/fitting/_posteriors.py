"""The posteriors of all tasks, made from their own runs or found in the working folder."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from optuna_merge._base.checkpoint_files import same_shapes
from optuna_merge._base.files import short_hash
from optuna_merge._base.tensors import HASH, content_hash, load_sound, read_metadata
from optuna_merge.definition import StudyDefinition
from optuna_merge.fitting._curvature import check_curvature, estimate
from optuna_merge.fitting._damping import Damping, Losses, noted_damping
from optuna_merge.models import MultitaskModel
from optuna_merge.posteriors import (
    FAMILIES,
    Curvature,
    DiagonalGaussian,
    Gaussian,
    Mixture,
    Posterior,
    load_posterior,
    posterior_to,
    save_posterior,
)
from optuna_merge.previews import Previewer
from optuna_merge.tasks import Measurement, Metric, Task, own_draws

_logger = logging.getLogger(__name__)

_DAMPED = "factors one by one"
"""How `damped` works, part of the key: posteriors that an older version damped are made again."""

_OTHER_BODY = "; it belongs to another body: use another --workdir"

_NOTHING = Metric(
    "nothing",
    lambda outputs, labels: Measurement(math.nan, math.nan),
    condense=lambda outputs, labels: (labels[:, :0], labels[:, :0]),
)


@dataclass(frozen=True)
class MadePosteriors:
    """Posteriors by task, their files and these files' hashes, the damping, and what they cost.

    `made_from`: by task, hashes of the parameters of its own runs, and of their curvatures.
    """

    posteriors: dict[str, Posterior]
    made_from: dict[str, list[str]]
    hashes: dict[str, str]
    damping: Damping | None
    seconds: float
    files: tuple[Path, ...]


class PosteriorMaker:
    """Makes posteriors; what is in the folder and matches is not made again.

    By task: `states` and `curvatures` of its own runs, one per component; `heads` as in previews;
    `keys` that identify the task, its data, and what it uses of the body.
    """

    def __init__(
        self,
        definition: StudyDefinition,
        model: MultitaskModel,
        tasks: Sequence[Task],
        states: Mapping[str, Sequence[Mapping[str, Tensor]]],
        curvatures: Mapping[str, Sequence[Mapping[str, Tensor]]],
        heads: Mapping[str, Mapping[str, Tensor]],
        folder: Path,
        keys: Mapping[str, str],
    ) -> None:
        self._settings = definition.posterior
        self._family = FAMILIES[definition.posterior.family]
        self._batch_size = definition.finetuning.evaluation_batch_size
        self._model = model
        self._tasks = tasks
        self._states = states
        self._curvatures = curvatures
        self._heads = heads
        self._folder = folder
        self._made_from = {
            t.name: [content_hash(state, {"key": keys[t.name]}) for state in states[t.name]]
            + [content_hash(curvature, {}) for curvature in curvatures.get(t.name, [])]
            for t in tasks
        }
        self._key = short_hash([self._made_from, asdict(self._settings), _DAMPED])

    def make(self) -> MadePosteriors:
        """Make what is missing, one process at a time, and load all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / f"{self._key}.lock"):
            undamped: dict[str, Posterior] = {}
            files: list[Path] = []
            seconds = 0.0
            for task in self._tasks:
                components = []
                for index in range(len(self._states[task.name])):
                    path, component, spent = self._component(task, index)
                    components.append(component)
                    files += [] if path is None else [path]
                    seconds += spent
                undamped[task.name] = self._mixed(components)
            damping = None
            if self._family.curvature is not None:
                path, damping = self._damping(undamped)
                files += [path] if path.exists() else []
                seconds += damping.seconds
            posteriors, hashes = {}, {}
            for task in self._tasks:
                path = self._folder / f"{task.name}-{self._key}.safetensors"
                posterior = self._posterior(task.name, path, undamped[task.name], damping)
                posteriors[task.name] = posterior
                hashes[task.name] = read_metadata(path)[HASH]
                files.append(path)
        return MadePosteriors(posteriors, self._made_from, hashes, damping, seconds, tuple(files))

    def curvature(self, task: Task, index: int) -> Path | None:
        """File of the curvature of one run, made if it is missing; None where none is needed."""
        curvature = self._family.curvature
        if curvature is None or self._settings.estimator == "ivon":
            return None
        path = self._curvature_path(curvature, task.name, index)
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._component(task, index)
        return path

    def _posterior(
        self, task: str, path: Path, undamped: Posterior, damping: Damping | None
    ) -> Posterior:
        posterior = load_sound(path, load_posterior)
        if posterior is None:
            metadata = {"task": task, "made_from": " ".join(self._made_from[task])}
            posterior = undamped
            if damping is not None:
                posterior = undamped.damped(damping.value)
                metadata["damping"] = repr(damping.value)
            save_posterior(posterior, path, metadata)
        same_shapes(f"task {task!r}: {path}", posterior.mean, undamped.mean, _OTHER_BODY)
        return posterior

    def _mixed(self, components: list[Gaussian]) -> Posterior:
        if len(components) == 1:
            return components[0]
        even = torch.full((len(components),), -math.log(len(components)))
        return Mixture(components, even, self._settings.responsibilities)

    def _component(self, task: Task, index: int) -> tuple[Path | None, Gaussian, float]:
        """Posterior of one run without damping, its file, and the seconds that it took."""
        family, state = self._family, self._states[task.name][index]
        mean = {name: state[name] for name in self._model.shared_names()}
        if family.curvature is None:
            return None, family.made(mean), 0.0
        if self._settings.estimator == "ivon":
            known = self._curvatures[task.name][index]
            found = DiagonalGaussian(mean, {name: known[name] for name in mean})
            check_curvature(task.name, found)
            return None, family.made(found), 0.0
        path = self._curvature_path(family.curvature, task.name, index)
        loaded = load_sound(path, load_posterior)
        if loaded is not None:
            same_shapes(f"task {task.name!r}: {path}", loaded.mean, mean, _OTHER_BODY)
            return path, family.made(loaded), float(read_metadata(path)["seconds"])
        _logger.info("task %s: estimating the curvature", task.name)
        started = time.perf_counter()
        # The curvature comes from the model's device, the mean and all files' tensors are here.
        with own_draws(self._model.device):
            made = estimate(family.curvature, self._model, task, state, self._settings)
        posterior = posterior_to(made, "cpu")
        check_curvature(task.name, posterior)
        seconds = time.perf_counter() - started
        save_posterior(posterior, path, {"task": task.name, "seconds": repr(seconds)})
        return path, family.made(posterior), seconds

    def _curvature_path(self, curvature: Curvature, task: str, index: int) -> Path:
        # The damping changes posteriors, but not the curvature below them.
        settings = self._settings
        reads = [getattr(settings, name) for name in curvature.reads]
        made_of = [curvature.name, *reads, settings.examples, settings.seed]
        key = short_hash([self._made_from[task][index], made_of])
        return self._folder / f"curvature-{task}-{key}.safetensors"

    def _damping(self, undamped: Mapping[str, Posterior]) -> tuple[Path, Damping]:
        path = self._folder / f"damping-{self._key}.json"
        if self._settings.damping is not None:
            return path, Damping(self._settings.damping, {}, 0.0)
        return path, noted_damping(path, undamped, lambda delta: self._losses(undamped, delta))

    def _losses(self, undamped: Mapping[str, Posterior], delta: float) -> Losses:
        previewer = Previewer(
            self._model,
            [_only_cheap(task) for task in self._tasks],
            {task: posterior.damped(delta) for task, posterior in undamped.items()},
            self._heads,
            batch_size=self._batch_size,
            limit=self._settings.damping_examples,
        )
        return lambda weights: {
            task: found.loss.value for task, found in previewer(weights).evaluations.items()
        }


def _only_cheap(task: Task) -> Task:
    """The task without metrics that cost more than its loss, where only that is looked at."""
    left = tuple(metric for metric in task.metrics if metric.in_one_pass)
    if left == task.metrics:
        return task
    return replace(task, metrics=left or (_NOTHING,))
