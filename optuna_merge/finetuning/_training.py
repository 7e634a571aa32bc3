"""A finetune between two rungs: the steps that all processes take together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor

from optuna_merge.exceptions import TrainingDivergedError
from optuna_merge.finetuning._checkpoint import Checkpoint, optimizer_moments, restore_moments
from optuna_merge.finetuning._group import Group, make_accelerator
from optuna_merge.finetuning._ivon import IVON
from optuna_merge.finetuning._optimizers import make_optimizer
from optuna_merge.finetuning._order import Order, derived_seed
from optuna_merge.finetuning._settings import FinetuneSettings
from optuna_merge.finetuning._shards import in_shards, whole
from optuna_merge.models import MultitaskModel
from optuna_merge.tasks import LABELS, Loss, Task, own_draws, seed_draws, to_device


class Training:
    """A run between two rungs.

    In shards (FSDP) it is a copy of the model that is trained: all processes hold a part of its
    parameters, gradients and optimizer state. The model itself waits on the CPU, and is whole on
    the main process's device when it is evaluated.

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
        self.device: torch.device = self.accelerator.device
        self._model, self._active, self._weights = model, active, weights
        self._settings, self._group = settings, group
        self._sharding = None if group is None else group.sharding
        self._leads = group is None or group.is_main
        model.to("cpu" if self._sharding else self.device)
        model.reset()
        if start is not None:
            model.load(start, source="the start of the finetune")
        model.zero_grad()  # a run that failed in the middle of a step left its gradients
        self.names = model.trained_names([task.name for task in active])
        self._examples = sum(len(task.data("train")) for task in active)
        self._orders = {
            task.name: Order(
                task.name, len(task.data("train")), settings.batch_size, settings.seed
            )
            for task in active
        }
        self._train(model)

    def _train(self, model: MultitaskModel) -> None:
        """Let it be this model's parameters that steps change."""
        self._trained = model
        self._bare, self._ordered = make_optimizer(
            model, self.names, self._settings, self._examples
        )
        self.optimizer = self.accelerator.prepare(self._bare)
        parameters = dict(model.named_parameters())
        self._parameters = [parameters[name] for name in self._ordered]

    def resume(self, checkpoint: Checkpoint, source: str) -> None:
        """Go on from a checkpoint; on the main process, before `running`."""
        self._model.load(checkpoint.parameters, source=source)
        restore_moments(self.optimizer, self._ordered, checkpoint.moments)
        if self.accelerator.scaler is not None and checkpoint.scaler:
            self.accelerator.scaler.load_state_dict(checkpoint.scaler)

    @contextmanager
    def running(self) -> Iterator[None]:
        """The steps are taken within this block, which all processes enter together.

        Random numbers are the run's in it; the process's own come back after it.
        """
        if self._group is not None:
            with self._together():
                self._share(self._group)
        device = self.device
        try:
            with own_draws(device):
                yield
        finally:
            if self._sharding is not None:
                if self._leads:  # where previews expect it
                    self._model.to(device)
                self._train_nothing()
            self.accelerator.free_memory()

    def _train_nothing(self) -> None:
        """Let go of what was trained, also where an error's traceback holds this object."""
        self._trained, self._parameters = self._model, []
        del self.optimizer, self._bare

    def _share(self, group: Group) -> None:
        """Take the main process's parameters and optimizer state, or this process's part."""
        state = group.broadcast_tensors(self._model.state(self.names))
        moments = optimizer_moments(self.optimizer, self._ordered)
        moments = group.broadcast_tensors(moments)
        scaler = self.accelerator.scaler
        known = group.broadcast(scaler.state_dict() if scaler else {})
        if not group.is_main:
            self._model.load(state, source="the main process")
            if scaler is not None and known:
                scaler.load_state_dict(known)
        if self._sharding is not None:
            self._train_nothing()
            self.accelerator.free_memory()  # also what a run that was broken off has left
            self._train(in_shards(self._model, self._sharding, self.device))
        if self._sharding is not None or not group.is_main:
            restore_moments(self.optimizer, self._ordered, moments)

    def step(self, step: int) -> Tensor:
        """Take the step of this number, counted from 0, on this process's share of the batches.

        Returns:
            The weighted loss of the whole batches, on the device.
        """
        with self._together():
            total, norm = self._gradients(step)
            _check_finite(total, norm, self.accelerator, step, self._weights)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return total

    def collect(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Make the main process's model that which was trained; all processes must call it.

        Returns:
            The trained parameters and the optimizer's state by name, whole; nothing on the other
            processes.
        """
        moments = optimizer_moments(self.optimizer, self._ordered)
        if self._sharding is None:
            return (self._model.state(self.names), moments) if self._leads else ({}, {})
        parameters = dict(self._trained.named_parameters())
        with self._together():
            state = self._whole({name: parameters[name] for name in self.names})
            moments = self._whole(moments)
        if self._leads:
            self._model.to(self.device)
            self._model.load(state)
        return state, moments

    def stow(self) -> None:
        """Make room for training on the device after `collect`."""
        if self._sharding is not None:
            self._model.to("cpu")

    def curvature(self) -> dict[str, Tensor] | None:
        """IVON's estimate by name, see `IVON.curvature`; all processes must call it."""
        if not isinstance(self._bare, IVON):
            return None
        return self._whole(dict(zip(self._ordered, self._bare.curvature())))

    def _whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One after the other, and kept on the main process only."""
        kept = {}
        for name, tensor in tensors.items():
            value = whole(tensor.detach())
            if self._leads:
                kept[name] = value if self._sharding is None else value.cpu()
        return kept

    def _together(self) -> AbstractContextManager[None]:
        return nullcontext() if self._group is None else self._group.lockstep()

    def _gradients(self, step: int) -> tuple[Tensor, Tensor]:
        settings, accelerator, group = self._settings, self.accelerator, self._group
        rank, size = (0, 1) if group is None else (group.rank, group.size)
        seed_draws(derived_seed("step", settings.seed, step))
        self._trained.train()
        _set_rate(self.optimizer, settings.rate(step))
        total = torch.zeros((), device=self.device)
        with self._bare.sampled() if isinstance(self._bare, IVON) else nullcontext():
            if rank:  # other dropout than elsewhere; IVON's noise was the same
                seed_draws(derived_seed("step", settings.seed, step, rank))
            for task in self._active:
                rows = self._orders[task.name].rows(step)
                own = rows[rank::size]
                share = len(own) / len(rows)  # its part of the whole batch's mean
                if not own and self._sharding is None:
                    continue
                # In shards all processes must pass through the model together.
                batch = to_device(task.data("train")[own or rows[:1]], self.device)
                with accelerator.autocast():
                    outputs = self._trained(batch, task.name)
                assert isinstance(task.loss, Loss)
                loss = self._weights[task.name] * task.loss(outputs.float(), batch[LABELS]).mean()
                loss = loss * share
                total += loss.detach()
                # FSDP takes the mean of the processes' gradients.
                accelerator.backward(loss if self._sharding is None else loss * size)
            if group is not None:
                plain = self._parameters if self._sharding is None else []
                group.sum_gradients(plain, total)
            norm = accelerator.clip_grad_norm_(self._trained.parameters(), settings.max_grad_norm)
        return total, whole(norm)


def _set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


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
