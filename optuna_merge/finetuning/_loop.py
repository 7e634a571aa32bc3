"""The training loop. A task run is a multitask run with one task."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from optuna_merge._files import canonical_json, sha256_text
from optuna_merge.exceptions import TrainingDivergedError
from optuna_merge.finetuning._checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_moments,
    restore_moments,
    save_checkpoint,
)
from optuna_merge.finetuning._ivon import IVON
from optuna_merge.finetuning._optimizers import make_optimizer, warn_if_constant
from optuna_merge.finetuning._order import Order, derived_seed
from optuna_merge.finetuning._settings import FinetuneSettings
from optuna_merge.finetuning._watchers import RunInfo, told
from optuna_merge.models import MultitaskModel, evaluate_tasks, task_batches
from optuna_merge.tasks import Evaluation, Loss, Task
from optuna_merge.tasks._data import LABELS, to_device

_logger = logging.getLogger(__name__)

OnRung = Callable[[int, dict[str, Evaluation]], None]


@dataclass(frozen=True)
class FinetuneResult:
    """What came of a finetune; the parameters are in the model.

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

    Every step takes `batch_size` examples of each task with positive weight, and weighs the
    MEANS of the tasks' losses (arXiv 2412.08147, eq. 1): weights then mean the same here as in a
    merge, whatever the tasks' sizes. Heads of tasks with weight zero stay as they were made.

    With a checkpoint the run can be killed at any moment and goes on from its last rung, on the
    CPU bit for bit as if it had never stopped: data order, dropout and IVON's noise depend on the
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
    key = sha256_text(canonical_json([key, dict(weights), settings.describe()]))

    accelerator = _accelerator(settings.mixed_precision)
    device = accelerator.device
    model.to(device)
    model.reset()
    if start is not None:
        model.load(start, source="the start of the finetune")
    model.zero_grad()  # a run that failed in the middle of a step left its gradients
    names = model.trained_names([task.name for task in active])
    examples = sum(len(task.data("train")) for task in active)
    bare, ordered = make_optimizer(model, names, settings, examples)
    optimizer = accelerator.prepare(bare)
    orders = {
        task.name: Order(task.name, len(task.data("train")), settings.batch_size, settings.seed)
        for task in active
    }

    done, seconds, history = 0, 0.0, {}
    resumed = load_checkpoint(checkpoint, key) if checkpoint is not None else None
    if resumed is not None:
        model.load(resumed.parameters, source=str(checkpoint))
        restore_moments(optimizer, ordered, resumed.moments)
        if accelerator.scaler is not None and resumed.scaler:
            accelerator.scaler.load_state_dict(resumed.scaler)
        done, seconds, history = resumed.step, resumed.seconds, dict(resumed.evaluations)
        _logger.info("going on after step %d of %d from %s", done, settings.steps, checkpoint)
        for step, values in sorted(history.items()):
            if on_rung is not None:
                on_rung(step, {name: Evaluation.from_json(v) for name, v in values.items()})

    evaluations = {
        name: Evaluation.from_json(value) for name, value in history.get(done, {}).items()
    }
    rungs = set(settings.rungs())
    validation = task_batches(model, tasks, batch_size=settings.evaluation_batch_size)
    started = time.perf_counter()
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        told(RunInfo(progress, weights, settings.steps, done)) as watchers,
    ):
        for step in range(done, settings.steps):
            torch.manual_seed(derived_seed("step", settings.seed, step))
            model.train()
            _set_rate(optimizer, settings.rate(step))
            total = torch.zeros((), device=device)
            with bare.sampled() if isinstance(bare, IVON) else nullcontext():
                for task in active:
                    batch = to_device(task.data("train")[orders[task.name].rows(step)], device)
                    with accelerator.autocast():
                        outputs = model(batch, task.name)
                    assert isinstance(task.loss, Loss)
                    loss = weights[task.name] * task.loss(outputs.float(), batch[LABELS]).mean()
                    accelerator.backward(loss)
                    total += loss.detach()
                norm = accelerator.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
            _check_finite(total, norm, accelerator, step, weights)
            optimizer.step()
            optimizer.zero_grad()
            for watcher in watchers:
                watcher.stepped(step + 1, total)
            if step + 1 in rungs:
                evaluations = evaluate_tasks(model, tasks, validation)
                for watcher in watchers:
                    watcher.evaluated(step + 1, evaluations)
                history[step + 1] = {name: e.to_json() for name, e in evaluations.items()}
                elapsed = seconds + time.perf_counter() - started
                if checkpoint is not None:
                    state = Checkpoint(
                        step=step + 1,
                        seconds=elapsed,
                        parameters=model.state(names),
                        moments=optimizer_moments(optimizer, ordered),
                        evaluations=history,
                        scaler=accelerator.scaler.state_dict() if accelerator.scaler else {},
                    )
                    save_checkpoint(checkpoint, key, state)
                if on_rung is not None:
                    on_rung(step + 1, evaluations)
    model.eval()
    accelerator.free_memory()
    total_seconds = seconds + time.perf_counter() - started
    curvature = None
    if isinstance(bare, IVON):
        curvature = dict(zip(ordered, bare.curvature()))
        warn_if_constant({name: curvature[name] for name in model.shared_names()})
    return FinetuneResult(evaluations, settings.steps, total_seconds, done, curvature)


def _accelerator(mixed_precision: str) -> Accelerator:
    # Accelerate holds one precision for the whole process, but runs may differ in theirs.
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed_precision:
        AcceleratorState._reset_state()
    return Accelerator(mixed_precision=mixed_precision)


def training_device(settings: FinetuneSettings) -> torch.device:
    """Where runs of these settings train, by accelerate's choice."""
    device: torch.device = _accelerator(settings.mixed_precision).device
    return device


def _set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def _check_weights(weights: Mapping[str, float], tasks: Mapping[str, Task]) -> None:
    if set(weights) != set(tasks):
        raise ValueError(f"task weights for {sorted(weights)}, but the tasks are {sorted(tasks)}")
    bad = {name: w for name, w in weights.items() if not (math.isfinite(w) and w >= 0)}
    if bad or not any(weights.values()):
        raise ValueError(
            f"task weights must be finite, not negative, and not all zero, got {dict(weights)}"
        )


def _check_finite(
    loss: Tensor,
    norm: Tensor | None,
    accelerator: Accelerator,
    step: int,
    weights: Mapping[str, float],
) -> None:
    # With fp16 an infinite gradient is ordinary: the scaler skips that step.
    watched = loss if norm is None or accelerator.scaler is not None else loss + norm.to(loss)
    if not bool(torch.isfinite(watched)):
        size = math.nan if norm is None else float(norm)
        raise TrainingDivergedError(
            f"loss {float(loss):g}, gradient norm {size:g} in step {step + 1} with task weights "
            f"{dict(weights)}; a lower learning rate or a longer warm-up may help"
        )
