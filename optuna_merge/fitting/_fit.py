"""From tasks to posteriors: each task finetuned once, its curvature taken, the damping chosen."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from optuna_merge._base.files import check_writable, json_hash, short_hash
from optuna_merge._base.tensors import content_hash
from optuna_merge._base.turns import models_turn
from optuna_merge.definition import StudyDefinition
from optuna_merge.exceptions import TrainingDivergedError
from optuna_merge.finetuning import FinetuneStore, FinishedRun, Given, training_device
from optuna_merge.fitting._fitted import FittedStudy
from optuna_merge.fitting._given import given_state
from optuna_merge.fitting._posteriors import PosteriorMaker
from optuna_merge.fitting._units import FolderSharing, Sharing, Unit
from optuna_merge.goals import doubtful_sense
from optuna_merge.models import MultitaskModel, cache_trunk
from optuna_merge.previews import Anchor, Previewer
from optuna_merge.tasks import Task, check_finite
from optuna_merge.trials import uniform_weights

_logger = logging.getLogger(__name__)

_SOLVED = "mean loss of the first examples in the order of seed 0"
"""What heads are solved by, part of the key: files that an older version wrote are made again."""


def fit(
    definition: StudyDefinition,
    workdir: str | Path,
    *,
    progress: bool = True,
    sharing: Sharing | None = None,
) -> FittedStudy:
    """Finetune each task alone and make its posterior; results in the working folder are reused.

    The finetune at uniform weights is made here, too, because it corrects the previews (unless
    `PreviewSettings(anchor="none")`). It costs nothing extra: every study needs it as a baseline.

    Every result is a file in the working folder, under the hash of what it was made from. A task's
    run and its curvature depend on this task alone, so studies with other sets of tasks share
    them. An interrupted fit continues where it stopped. Workers that fit at the same time share
    the work.

    Args:
        definition: What to fit.
        workdir: The working folder, which is created.
        progress: Show progress bars.
        sharing: Who shares the work; None: the processes with this working folder. `StudySharing`
            shares it among machines.

    Raises:
        OSError: the folder can't be written.
        ValueError: a label or input is NaN or infinite.
        NotFiniteError: a task's metric after its own finetune, or its curvature, is NaN or
            infinite.
        TrainingDivergedError: a loss or gradient of a finetune is NaN or infinite.
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
    tasks = _cached_tasks(definition, workdir)
    if tasks != definition.tasks:
        _logger.info("the frozen layers' outputs for all data are kept in %s", workdir / "trunk")
    made: dict[tuple[str, int], _TaskRun] = {}

    @models_turn()
    def make(task: Task, component: int) -> list[Path]:
        run = _task_run(definition, model, tasks, task, component, store, progress)
        made[task.name, component] = run
        return run.files

    anchors: list[FinishedRun] = []

    @models_turn()
    def make_anchor() -> tuple[Path, ...]:
        run = _anchor_run(definition, model, tasks, store, progress)
        if run is None:
            return ()
        anchors.append(run)
        return run.files

    settings = json_hash([parts["finetuning"], parts["posterior"]])
    components = range(definition.posterior.components)
    given = {task: [key] for task, key in parts.get("runs", {}).items()}
    units = [
        Unit(
            f"task {task.name}" + (f", seed {component}" if component else ""),
            short_hash([store.keys[task.name], settings, component, *given.get(task.name, ())]),
            partial(make, task, component),
        )
        for task in tasks
        for component in components
    ]
    if definition.settled_preview.anchor != "none":
        key = short_hash([store.keys, parts["finetuning"], "uniform"])
        units.append(Unit("uniform weights", key, make_anchor))
    sharing.work_off(units)
    found = {task.name: [made[task.name, component] for component in components] for task in tasks}
    fitted: list[FittedStudy] = []

    @models_turn()
    def assemble() -> tuple[Path, ...]:
        anchor = anchors[0] if anchors else None
        fitted.append(_assemble(definition, model, tasks, found, anchor, store))
        return fitted[0].files

    everything = short_hash(parts)
    sharing.work_off([Unit("posteriors", everything, assemble)])
    return fitted[0]


@models_turn()
def _cached_tasks(definition: StudyDefinition, workdir: Path) -> tuple[Task, ...]:
    """The tasks as they run: on the frozen trunk's output, kept in the folder, if it is used."""
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
        task["name"]: json_hash([task, models[task["name"]]])
        for task in definition.describe()["tasks"]
    }
    hashes = definition.describe().get("runs", {})
    given = {
        task: Given(
            Path(run.path),
            hashes[task],
            definition.finetuning,
            partial(given_state, task, Path(run.path), any_base=run.any_base),
        )
        for task, run in definition.given_runs.items()
    }
    return FinetuneStore(workdir / "finetunes", keys, given)


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
    how = "given" if run.given else "found" if run.reused else f"trained in {run.seconds:.1f} s"
    _logger.info("task %s alone: %s %.4f, %s", task.name, task.metric.name, metric, how)
    state = run.parameters()
    folder = store.folder.parent / "posteriors"
    states = {task.name: [state]}
    maker = PosteriorMaker(definition, model, [task], states, {}, {}, folder, store.keys)
    curvature = maker.curvature(task, 0)
    return _TaskRun(run, state, [*run.files] + ([] if curvature is None else [curvature]))


def _anchor_run(
    definition: StudyDefinition,
    model: MultitaskModel,
    tasks: Sequence[Task],
    store: FinetuneStore,
    progress: bool,
) -> FinishedRun | None:
    """The finetune at uniform weights; None where it diverges, and merges stay as they are."""
    weights = uniform_weights(definition.names)
    title = "uniform weights" if progress else None
    try:
        return store.run(model, tasks, weights, definition.finetuning, progress=title)
    except TrainingDivergedError as error:  # every worker finds the same
        _logger.warning("merges stay as they are, uniform weights correct none: %s", error)
        return None


def _assemble(
    definition: StudyDefinition,
    model: MultitaskModel,
    tasks: tuple[Task, ...],
    found: Mapping[str, Sequence[_TaskRun]],
    anchor: FinishedRun | None,
    store: FinetuneStore,
) -> FittedStudy:
    """Posteriors and the damping from the tasks' own runs."""
    parts = definition.describe()
    states = {name: [made.state for made in of_task] for name, of_task in found.items()}
    runs = {name: [made.run for made in of_task] for name, of_task in found.items()}

    reached = {
        name: {other: found.metric.value for other, found in of_task[0].evaluations.items()}
        for name, of_task in runs.items()
    }
    doubt = doubtful_sense(reached, definition.greater_is_better)
    if doubt is not None:
        _logger.warning("%s", doubt)

    heads = {name: _mean_head(of_task, model.own_names(name)) for name, of_task in states.items()}
    curvatures = {}
    if definition.posterior.estimator == "ivon":
        curvatures = {name: [run.curvature() for run in of_task] for name, of_task in runs.items()}
    folder = store.folder.parent / "posteriors"
    made = PosteriorMaker(
        definition, model, tasks, states, curvatures, heads, folder, store.keys
    ).make()
    truth = None if anchor is None else anchor.parameters()
    previewer = Previewer(
        model,
        tasks,
        made.posteriors,
        heads,
        batch_size=definition.finetuning.evaluation_batch_size,
        settings=definition.settled_preview,
        states={name: of_task[0] for name, of_task in states.items()},
        anchor=None if truth is None else Anchor(truth),
        head_files=_head_files(definition, made.made_from, folder),
    )
    if definition.settled_preview.anchor != "none":
        parts["anchor"] = None if truth is None else content_hash(truth, {})
    parts |= {
        "posteriors": made.hashes,
        "heads": {name: content_hash(tensors, {}) for name, tensors in heads.items()},
    }
    every = [run for of_task in runs.values() for run in of_task]
    costs = {
        "task_run_steps": sum(run.steps for run in every if run.given is None),
        "task_run_seconds": sum(run.seconds for run in every),
        "posterior_seconds": made.seconds,
    }
    files = [*(path for run in every for path in run.files), *made.files]
    files += [] if anchor is None else anchor.files
    return FittedStudy(
        definition=definition,
        model=model,
        tasks=tasks,
        runs={name: of_task[0] for name, of_task in runs.items()},
        previewer=previewer,
        damping=made.damping,
        costs=costs,
        parts=parts,
        store=store,
        files=tuple(files),
    )


def _head_files(
    definition: StudyDefinition, made_from: Mapping[str, Sequence[str]], folder: Path
) -> dict[str, Path]:
    """By task, where is kept what previews with solved heads need of the task's own run."""
    preview, batch_size = definition.settled_preview, definition.finetuning.evaluation_batch_size
    settings = [preview.head_examples, preview.mixed_precision, batch_size, _SOLVED]
    return {
        task: folder / f"head-{task}-{short_hash([run, settings])}.safetensors"
        for task, (run, *_) in made_from.items()
    }


def _mean_head(states: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> dict[str, Tensor]:
    """The head of one task in previews: of several runs, which start alike, the mean."""
    if len(states) == 1:
        return {name: states[0][name] for name in names}
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in names}
