"""The training loop. A task run is a multitask run with one task."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from optuna_merge._base.files import json_hash
from optuna_merge.finetuning._checkpoint import load_checkpoint, save_checkpoint
from optuna_merge.finetuning._optimizers import warn_if_constant
from optuna_merge.finetuning._settings import FinetuneSettings
from optuna_merge.finetuning._training import Training
from optuna_merge.finetuning._watchers import RunInfo, told
from optuna_merge.models import MultitaskModel, evaluate_tasks, task_batches
from optuna_merge.tasks import Evaluation, Task

_logger = logging.getLogger(__name__)

OnRung = Callable[[int, dict[str, Evaluation]], None]


@dataclass(frozen=True)
class FinetuneResult:
    """The result of a finetune; the parameters are in the model.

    Attributes:
        evaluations: Of all tasks on their validation data, at the end.
        steps: Steps trained, over all processes that worked on this run.
        seconds: Time that they took, evaluations included.
        resumed_at: Step of the checkpoint that this call went on from; 0: from the start.
        curvature: With IVON its estimate for all trained parameters, by name; see
            `IVON.curvature`.
    """

    evaluations: dict[str, Evaluation]
    steps: int
    seconds: float
    resumed_at: int
    curvature: dict[str, Tensor] | None = None


def finetune(
    model: MultitaskModel,
    tasks: Sequence[Task],
    weights: Mapping[str, float],
    settings: FinetuneSettings,
    *,
    start: Mapping[str, Tensor] | None = None,
    checkpoint: Path | None = None,
    key: str = "",
    on_rung: OnRung | None = None,
    progress: str | None = None,
) -> FinetuneResult:
    """Minimise `sum_t a_t mean_i loss_t(i)` from the model's initial parameters, in place.

    Every step takes `batch_size` examples of each task with positive weight, and weighs the MEANS
    of the tasks' losses (arXiv 2412.08147, eq. 1): weights then mean the same here as in a merge,
    whatever the tasks' sizes. With a checkpoint the run can be killed at any moment and goes on
    from its last rung, on the CPU bit for bit: data order, dropout and IVON's noise depend on the
    step alone.

    Args:
        model: Is reset, trained and left in evaluation mode.
        tasks: All tasks; the model's.
        weights: Task weight by name, non-negative, as they are (not normalised).
        settings: The run's settings.
        start: Parameters by name to start from in place of the initial ones.
        checkpoint: Where to keep the last rung's state; None: nowhere.
        key: What else identifies this run (definition); a checkpoint of another key is not used.
        on_rung: Called after every rung with the steps done and the tasks' evaluations on
            validation data, also again for those of a resumed run. What it raises ends the run.
        progress: Title of a progress bar; None: no bar. `watched_by` has others look on.

    Raises:
        TrainingDivergedError: a loss or gradient is NaN or infinite.
        ValueError: weights that don't fit the tasks, or all of them zero.
    """
    by_name = {task.name: task for task in tasks}
    _check_weights(weights, by_name)
    active = [task for task in tasks if weights[task.name] > 0]
    key = json_hash([key, dict(weights), settings.describe()])

    training = Training(model, active, weights, settings, start)

    done, seconds, history = 0, 0.0, {}
    resumed = load_checkpoint(checkpoint, key) if checkpoint is not None else None
    if resumed is not None:
        training.resume(resumed, source=str(checkpoint))
        done, seconds, history = resumed.step, resumed.seconds, dict(resumed.evaluations)
        _logger.info("going on after step %d of %d from %s", done, settings.steps, checkpoint)
        for step, values in sorted(history.items()):
            if on_rung is not None:
                on_rung(step, {name: Evaluation.from_json(v) for name, v in values.items()})

    evaluations = {
        name: Evaluation.from_json(value) for name, value in history.get(done, {}).items()
    }
    rungs = set(settings.rungs())
    validation = task_batches(
        model, tasks, batch_size=settings.evaluation_batch_size, device=training.device
    )
    started = time.perf_counter()
    with training.running(), told(RunInfo(progress, weights, settings.steps, done)) as watchers:
        for step in range(done, settings.steps):
            loss = training.step(step)
            for watcher in watchers:
                watcher.stepped(step + 1, loss)
            if step + 1 not in rungs:
                continue
            evaluations = evaluate_tasks(model, tasks, validation)
            for watcher in watchers:
                watcher.evaluated(step + 1, evaluations)
            history[step + 1] = {name: e.to_json() for name, e in evaluations.items()}
            elapsed = seconds + time.perf_counter() - started
            if checkpoint is not None:
                save_checkpoint(checkpoint, key, training.checkpoint(step + 1, elapsed, history))
            if on_rung is not None:
                on_rung(step + 1, evaluations)
        curvature = training.curvature()
    model.eval()
    total_seconds = seconds + time.perf_counter() - started
    if curvature is not None:
        warn_if_constant({name: curvature[name] for name in model.shared_names()})
    return FinetuneResult(evaluations, settings.steps, total_seconds, done, curvature)


def _check_weights(weights: Mapping[str, float], tasks: Mapping[str, Task]) -> None:
    if set(weights) != set(tasks):
        raise ValueError(f"task weights for {sorted(weights)}, but the tasks are {sorted(tasks)}")
    bad = {name: w for name, w in weights.items() if not (math.isfinite(w) and w >= 0)}
    if bad or not any(weights.values()):
        raise ValueError(
            f"task weights must be finite, not negative, and not all zero, got {dict(weights)}"
        )
