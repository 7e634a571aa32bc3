"""The training loop. A task run is a multitask run with one task."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
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
from optuna_merge.finetuning._group import Group, current_group, make_accelerator
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

    Within `joined_group` the other processes take their shares of every batch, and gradients are
    summed: without dropout that is the run of one process but for rounding.

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

    group = current_group()
    training = _Training(model, active, weights, settings, group, start)
    optimizer, ordered = training.optimizer, training.ordered
    accelerator, names = training.accelerator, training.names

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
    if group is not None:
        group.broadcast(["finetune", dict(weights), settings.describe(), done])
        training.share()
    with (
        training.own_random_numbers(),
        told(RunInfo(progress, weights, settings.steps, done)) as watchers,
    ):
        for step in range(done, settings.steps):
            loss = training.step(step)
            for watcher in watchers:
                watcher.stepped(step + 1, loss)
            if step + 1 not in rungs:
                continue
            with nullcontext() if group is None else group.verdict():
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
    if isinstance(training.bare, IVON):
        curvature = dict(zip(ordered, training.bare.curvature()))
        warn_if_constant({name: curvature[name] for name in model.shared_names()})
    return FinetuneResult(evaluations, settings.steps, total_seconds, done, curvature)


def train_along(
    model: MultitaskModel,
    tasks: Sequence[Task],
    weights: Mapping[str, float],
    settings: FinetuneSettings,
    done: int,
    group: Group,
) -> None:
    """The part of the other processes in a `finetune` of the main one, from its step `done` on."""
    active = [task for task in tasks if weights[task.name] > 0]
    training = _Training(model, active, weights, settings, group)
    training.share()
    rungs = set(settings.rungs())
    with training.own_random_numbers():
        for step in range(done, settings.steps):
            try:
                training.step(step)
            except TrainingDivergedError:  # the main process says so, too
                return
            if step + 1 in rungs and not group.broadcast():
                return
    training.accelerator.free_memory()


class _Training:
    """A run between two steps.

    Args:
        model: Is reset.
        active: The tasks with weight.
        weights: Task weights.
        settings: The run's settings.
        group: The processes that share the steps out; None: this one alone.
        start: Parameters to start from in place of the initial ones.
    """

    def __init__(
        self,
        model: MultitaskModel,
        active: Sequence[Task],
        weights: Mapping[str, float],
        settings: FinetuneSettings,
        group: Group | None,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.accelerator = make_accelerator(settings.mixed_precision)
        self._device = self.accelerator.device
        self._model, self._active, self._weights = model, active, weights
        self._settings, self._group = settings, group
        model.to(self._device)
        model.reset()
        if start is not None:
            model.load(start, source="the start of the finetune")
        model.zero_grad()  # a run that failed in the middle of a step left its gradients
        self.names = model.trained_names([task.name for task in active])
        examples = sum(len(task.data("train")) for task in active)
        self.bare, self.ordered = make_optimizer(model, self.names, settings, examples)
        self.optimizer = self.accelerator.prepare(self.bare)
        parameters = dict(model.named_parameters())
        self._parameters = [parameters[name] for name in self.ordered]
        self._orders = {
            task.name: Order(
                task.name, len(task.data("train")), settings.batch_size, settings.seed
            )
            for task in active
        }

    def share(self) -> None:
        """Take the main process's parameters and optimizer state."""
        assert self._group is not None
        state = self._group.broadcast_tensors(self._model.state(self.names))
        moments = optimizer_moments(self.optimizer, self.ordered)
        moments = self._group.broadcast_tensors(moments)
        scaler = self.accelerator.scaler
        known = self._group.broadcast(scaler.state_dict() if scaler else {})
        if self._group.is_main:
            return
        self._model.load(state, source="the main process")
        restore_moments(self.optimizer, self.ordered, moments)
        if scaler is not None and known:
            scaler.load_state_dict(known)

    @contextmanager
    def own_random_numbers(self) -> Iterator[None]:
        """Within this block random numbers are the run's, the process's own come back after it."""
        device = self._device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield

    def step(self, step: int) -> Tensor:
        """Take the step of this number, counted from 0, on this process's share of the batches.

        Returns:
            The weighted loss of the whole batches, on the device.
        """
        with nullcontext() if self._group is None else self._group.lockstep():
            total, norm = self._gradients(step)
            _check_finite(total, norm, self.accelerator, step, self._weights)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return total

    def _gradients(self, step: int) -> tuple[Tensor, Tensor | None]:
        settings, accelerator, group = self._settings, self.accelerator, self._group
        rank, size = (0, 1) if group is None else (group.rank, group.size)
        torch.manual_seed(derived_seed("step", settings.seed, step))
        self._model.train()
        _set_rate(self.optimizer, settings.rate(step))
        total = torch.zeros((), device=self._device)
        with self.bare.sampled() if isinstance(self.bare, IVON) else nullcontext():
            if rank:  # other dropout than elsewhere; IVON's noise was the same
                torch.manual_seed(derived_seed("step", settings.seed, step, rank))
            for task in self._active:
                rows = self._orders[task.name].rows(step)
                own = rows[rank::size]
                if not own:
                    continue
                batch = to_device(task.data("train")[own], self._device)
                with accelerator.autocast():
                    outputs = self._model(batch, task.name)
                assert isinstance(task.loss, Loss)
                loss = self._weights[task.name] * task.loss(outputs.float(), batch[LABELS]).mean()
                loss = loss * (len(own) / len(rows))  # its part of the whole batch's mean
                accelerator.backward(loss)
                total += loss.detach()
            if group is not None:
                group.sum_gradients(self._parameters, total)
            norm = accelerator.clip_grad_norm_(self._model.parameters(), settings.max_grad_norm)
        return total, norm


def training_device(settings: FinetuneSettings) -> torch.device:
    """Where runs of these settings train, by accelerate's choice."""
    device: torch.device = make_accelerator(settings.mixed_precision).device
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
