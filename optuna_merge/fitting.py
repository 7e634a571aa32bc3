"""From tasks to posteriors: each task finetuned once, its curvature taken, the damping chosen."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from optuna_merge._files import canonical_json, sha256_text
from optuna_merge._posterior_maker import MadePosteriors, PosteriorMaker
from optuna_merge._tensors import content_hash
from optuna_merge._turns import models_turn
from optuna_merge.constraints import Limits
from optuna_merge.damping import Damping
from optuna_merge.definition import PosteriorSettings, StudyDefinition
from optuna_merge.finetuning import (
    FinetuneStore,
    FinishedRun,
    Start,
    current_group,
    training_device,
)
from optuna_merge.fronts import below_nadir
from optuna_merge.models import MultitaskModel, cache_trunk
from optuna_merge.previews import Previewer, Refiner, choose_rate
from optuna_merge.scores import Array, Score
from optuna_merge.sharing import FolderSharing, Sharing, Unit
from optuna_merge.tasks import Task
from optuna_merge.tasks._evaluation import check_finite

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FittedStudy:
    """A definition with its task runs and posteriors: what previews and finetunes start from.

    Attributes:
        definition: What was fitted.
        model: The resident model.
        tasks: The tasks as they run: on the frozen trunk's cached output where that applies.
        runs: The task's own finetune, by task; of several, that of the truths' seed.
        previewer: Scores merges of the posteriors.
        compared: Scores merges of the other posteriors that the definition compares, by label.
        refiner: Refines them; None if the definition has no refinement.
        merge: Gives the merge at some weights as the start of a finetune.
        damping: The damping; None for isotropic posteriors.
        costs: Training steps and seconds, by what they were spent on.
        parts: The full definition, posteriors included, as JSON values.
        store: All finetunes of this definition.
        files: What another working folder needs to have the same fit.
    """

    definition: StudyDefinition
    model: MultitaskModel
    tasks: tuple[Task, ...]
    runs: dict[str, FinishedRun]
    previewer: Previewer
    compared: dict[str, Previewer]
    refiner: Refiner | None
    merge: Callable[[Mapping[str, float]], Start]
    damping: Damping | None
    costs: dict[str, float]
    parts: dict[str, Any]
    store: FinetuneStore
    files: tuple[Path, ...]

    @property
    def fingerprint(self) -> str:
        """One hash of tasks, data, body, settings and posteriors."""
        return sha256_text(canonical_json(self.parts))

    def start(self, weights: Mapping[str, float]) -> Start | None:
        """Where the real finetune at `weights` starts; None: at the pretrained body."""
        return self.merge(weights) if self.definition.start == "merged" else None

    @property
    def alone(self) -> dict[str, float]:
        """Each task's metric on validation data when it is finetuned alone."""
        return {name: run.evaluations[name].metric.value for name, run in self.runs.items()}

    @property
    def reference_point(self) -> dict[str, float]:
        """By task, the metric that hypervolumes are measured from.

        A tenth of the range below the worst that the task has in the single-task runs (above it,
        where the metric is to be minimised).
        """
        names = self.definition.names
        signs = np.array([1.0 if g else -1.0 for g in self.definition.greater_is_better.values()])
        runs = [
            [run.evaluations[name].metric.value for name in names] for run in self.runs.values()
        ]
        point = signs * below_nadir(signs * np.array(runs))
        return dict(zip(names, point.tolist()))

    def score(self, metrics: Mapping[str, float]) -> float:
        """The definition's score of the tasks' metrics."""
        return self.definition.score_of(metrics, self.alone)

    def values(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """The objective values of the tasks' metrics; one, but for Pareto studies."""
        return self.definition.values_of(metrics, self.alone)

    @property
    def constraints(self) -> Limits | None:
        """The definition's constraints as `PreviewSampler` wants them; None without any."""
        constraints = self.definition.constraints
        assert not isinstance(constraints, (int, float))
        if not constraints:
            return None
        return Limits.of(constraints, self.alone, self.definition.greater_is_better)

    def scores(self, metrics: Array) -> Array:
        """`score` of many points at once, `... x tasks` to `...`, as `PreviewSampler` wants it."""
        score = self.definition.score
        assert isinstance(score, Score)
        return score.over(metrics, self.alone)


def fit(
    definition: StudyDefinition,
    workdir: str | Path,
    *,
    progress: bool = True,
    sharing: Sharing | None = None,
) -> FittedStudy:
    """Finetune each task alone and make its posterior; what is there and matches is not repeated.

    Every result is a file in the working folder, under the hash of what it was made from: of a
    task's own run and its curvature that is this task alone, so that studies of other sets of
    tasks share them. An interrupted fit goes on where it stopped, the training run from its last
    checkpoint. Workers that fit at once share the tasks out: each run is made by one of them.

    Args:
        definition: What to fit.
        workdir: The working folder; is made.
        progress: Show progress bars.
        sharing: How the work is shared out; None: among the processes with this working folder.
            `StudySharing` does so among machines.

    Raises:
        OSError: the folder can't be written.
        ValueError: a label or input is NaN or infinite.
        NotFiniteError: a task's metric after its own finetune is, or its curvature.
        TrainingDivergedError: a loss or gradient of such a finetune is.
    """
    workdir = Path(workdir)
    check_writable(workdir)
    sharing = FolderSharing(workdir) if sharing is None else sharing
    model = definition.model
    # Also where every run is found and none trains: previews are made where the model is.
    with models_turn():
        model.to(training_device(definition.finetuning))
    parts = definition.describe()
    store = finetune_store(definition, workdir)
    group = current_group()
    if group is not None:
        group.broadcast(["fit", str(workdir)])
    tasks = cached_tasks(definition, workdir)
    if tasks != definition.tasks:
        _logger.info("the frozen layers' outputs for all data are kept in %s", workdir / "trunk")
    made: dict[tuple[str, int], _TaskRun] = {}

    @models_turn()
    def make(task: Task, component: int) -> list[Path]:
        run = _task_run(definition, model, tasks, task, component, store, progress)
        made[task.name, component] = run
        return run.files

    settings = sha256_text(canonical_json([parts["finetuning"], parts["posterior"]]))
    components = range(definition.posterior.components)
    sharing.work_off(
        [
            Unit(
                f"task {task.name}" + (f", seed {component}" if component else ""),
                sha256_text(canonical_json([store.keys[task.name], settings, component]))[:24],
                partial(make, task, component),
            )
            for task in tasks
            for component in components
        ]
    )
    found = {task.name: [made[task.name, component] for component in components] for task in tasks}
    fitted: list[FittedStudy] = []

    @models_turn()
    def assemble() -> tuple[Path, ...]:
        fitted.append(_assemble(definition, model, tasks, found, store, progress))
        return fitted[0].files

    everything = sha256_text(canonical_json(parts))[:24]
    sharing.work_off([Unit("posteriors", everything, assemble)])
    return fitted[0]


@models_turn()
def cached_tasks(definition: StudyDefinition, workdir: Path) -> tuple[Task, ...]:
    """The tasks as they run: on the frozen trunk's output, kept in the folder, where that applies.

    For the process that fits, and those that train along with it.
    """
    return cache_trunk(
        definition.model,
        definition.tasks,
        batch_size=definition.finetuning.evaluation_batch_size,
        folder=workdir / "trunk",
    )


def finetune_store(definition: StudyDefinition, workdir: Path) -> FinetuneStore:
    """The definition's finetunes in a working folder."""
    models = definition.model.describe_tasks()
    keys = {
        task["name"]: sha256_text(canonical_json([task, models[task["name"]]]))
        for task in definition.describe()["tasks"]
    }
    return FinetuneStore(workdir / "finetunes", keys)


def merges_key(parts: Mapping[str, Any]) -> str:
    """Identifies what merges are made of, from a `FittedStudy`'s parts."""
    made_of = [parts["posteriors"], parts["heads"]]
    if "heads" in parts.get("preview", {}):  # they are solved again for every merge
        made_of.append(parts["preview"])
    return sha256_text(canonical_json(made_of))


@dataclass(frozen=True)
class _TaskRun:
    """A task's own finetune, its parameters, and the files of the run and of its curvature."""

    run: FinishedRun
    state: dict[str, Tensor]
    files: list[Path]


def _task_run(
    definition: StudyDefinition,
    model: MultitaskModel,
    tasks: Sequence[Task],
    task: Task,
    component: int,
    store: FinetuneStore,
    progress: bool,
) -> _TaskRun:
    alone = {other.name: float(other is task) for other in tasks}
    settings = replace(definition.finetuning, seed=definition.finetuning.seed + component)
    title = f"task {task.name}" if progress else None
    run = store.run(model, tasks, alone, settings, progress=title)
    check_finite({task.name: run.evaluations[task.name]}, "its own finetune")
    metric = run.evaluations[task.name].metric.value
    how = "found" if run.reused else f"trained in {run.seconds:.1f} s"
    _logger.info("task %s alone: %s %.4f, %s", task.name, task.metric.name, metric, how)
    state = run.parameters()
    folder = store.folder.parent / "posteriors"
    states = {task.name: [state]}
    maker = PosteriorMaker(definition, model, [task], states, {}, {}, folder, store.keys)
    curvature = maker.curvature(task, 0)
    return _TaskRun(run, state, [*run.files] + ([] if curvature is None else [curvature]))


def _assemble(
    definition: StudyDefinition,
    model: MultitaskModel,
    tasks: tuple[Task, ...],
    found: Mapping[str, Sequence[_TaskRun]],
    store: FinetuneStore,
    progress: bool,
) -> FittedStudy:
    """Posteriors, the damping and the rate of refinements from the tasks' own runs."""
    parts = definition.describe()
    states = {name: [made.state for made in of_task] for name, of_task in found.items()}
    runs = {name: [made.run for made in of_task] for name, of_task in found.items()}

    def posteriors_of(settings: PosteriorSettings) -> _Fit:
        few = {name: of_task[: settings.components] for name, of_task in states.items()}
        curvatures = {}
        if settings.estimator == "ivon":
            curvatures = {
                name: [run.curvature() for run in of_task[: settings.components]]
                for name, of_task in runs.items()
            }
        heads = {name: _mean_head(of_task, model.own_names(name)) for name, of_task in few.items()}
        only = replace(definition, posterior=settings, compare=())
        folder = store.folder.parent / "posteriors"
        made = PosteriorMaker(
            only, model, tasks, few, curvatures, heads, folder, store.keys
        ).make()
        previewer = Previewer(
            model,
            tasks,
            made.posteriors,
            heads,
            batch_size=definition.finetuning.evaluation_batch_size,
            settings=definition.settled_preview,
            states={name: of_task[0] for name, of_task in states.items()},
        )
        return _Fit(made, heads, previewer)

    made, heads, previewer = posteriors_of(definition.posterior)
    others = {settings.label: posteriors_of(settings) for settings in definition.compare}
    parts |= {
        "posteriors": made.hashes,
        "heads": {name: content_hash(tensors, {}) for name, tensors in heads.items()},
    }
    if others:
        parts["compared"] = {label: other.made.hashes for label, other in others.items()}
    every = [run for of_task in runs.values() for run in of_task]
    costs = {
        "task_run_steps": sum(run.steps for run in every),
        "task_run_seconds": sum(run.seconds for run in every),
        "posterior_seconds": made.seconds + sum(o.made.seconds for o in others.values()),
    }
    files = [*(path for run in every for path in run.files), *made.files]
    files += [path for other in others.values() for path in other.made.files]
    merges = merges_key(parts)

    def merge(weights: Mapping[str, float]) -> Start:
        return Start(merges, lambda: previewer.merged(weights))

    refiner, refinement = None, definition.refinement
    if refinement is not None:
        around = (previewer, model, tasks, store, merge)
        choice = choose_rate(refinement, definition.finetuning, *around, progress=progress)
        refiner = Refiner(*around, refinement.training(definition.finetuning, choice.multiple))
        parts["refinement_rate"] = choice.multiple
        costs["refinement_choice_steps"] = sum(run.steps for run in choice.runs)
        costs["refinement_choice_seconds"] = sum(run.seconds for run in choice.runs)
        files += [run.path for run in choice.runs]
    return FittedStudy(
        definition=definition,
        model=model,
        tasks=tasks,
        runs={name: of_task[0] for name, of_task in runs.items()},
        previewer=previewer,
        compared={label: other.previewer for label, other in others.items()},
        refiner=refiner,
        merge=merge,
        damping=made.damping,
        costs=costs,
        parts=parts,
        store=store,
        files=tuple(files),
    )


class _Fit(NamedTuple):
    """Posteriors by one choice of settings, the tasks' heads beside them, and their merges."""

    made: MadePosteriors
    heads: dict[str, dict[str, Tensor]]
    previewer: Previewer


def _mean_head(states: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> dict[str, Tensor]:
    """The head of one task in previews: of several runs, which start alike, the mean."""
    if len(states) == 1:
        return {name: states[0][name] for name in names}
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in names}


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
