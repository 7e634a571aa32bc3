"""A finetune between two rungs: its device, the order of its data, its steps."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from optuna_merge.exceptions import TrainingDivergedError
from optuna_merge.finetuning._checkpoint import Checkpoint, optimizer_moments, restore_moments
from optuna_merge.finetuning._ivon import IVON
from optuna_merge.finetuning._optimizers import make_optimizer
from optuna_merge.finetuning._settings import FinetuneSettings
from optuna_merge.models import MultitaskModel
from optuna_merge.tasks import LABELS, Loss, Task, own_draws, seed_draws, to_device


def make_accelerator(mixed_precision: str) -> Accelerator:
    """Accelerate's choice for this process, which is not one of several that train together."""
    size = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    if size > 1:
        raise ValueError(
            f"launched as one of {size} processes (torchrun, accelerate launch), but our own "
            f"training loop is of one process; start a worker for each GPU on one study, with "
            f"CUDA_VISIBLE_DEVICES, or train by transformers' Trainer (om.from_trainer)"
        )
    # Accelerate holds one precision for the whole process, but runs may differ in theirs.
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed_precision:
        AcceleratorState._reset_state()
    return Accelerator(mixed_precision=mixed_precision)


def training_device(settings: FinetuneSettings) -> torch.device:
    """Where runs of these settings train, by accelerate's choice."""
    device: torch.device = make_accelerator(settings.mixed_precision).device
    return device


def derived_seed(*parts: object) -> int:
    """A 63-bit seed from the parts, the same on every machine."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Order:
    """Which examples of one task each step sees: a fresh permutation every epoch."""

    def __init__(self, task: str, size: int, batch_size: int, seed: int) -> None:
        self._task, self._size, self._batch_size, self._seed = task, size, batch_size, seed
        self._epochs: dict[int, list[int]] = {}

    def rows(self, step: int) -> list[int]:
        """Indices of the examples of step `step`, counted from 0."""
        start = step * self._batch_size
        return [
            self._permutation(position // self._size)[position % self._size]
            for position in range(start, start + self._batch_size)
        ]

    def _permutation(self, epoch: int) -> list[int]:
        if epoch not in self._epochs:
            generator = torch.Generator().manual_seed(
                derived_seed("order", self._seed, self._task, epoch)
            )
            # Keep the newest two: a batch may straddle epochs, long runs have many.
            while len(self._epochs) > 1:
                self._epochs.pop(min(self._epochs))
            self._epochs[epoch] = torch.randperm(self._size, generator=generator).tolist()
        return self._epochs[epoch]


class Training:
    """A run between two rungs."""

    def __init__(
        self,
        model: MultitaskModel,
        active: Sequence[Task],
        weights: Mapping[str, float],
        settings: FinetuneSettings,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.accelerator = make_accelerator(settings.mixed_precision)
        self.device: torch.device = self.accelerator.device
        self._model, self._active, self._weights = model, active, weights
        self._settings = settings
        model.to(self.device)
        model.reset()
        if start is not None:
            model.load(start, source="the start of the finetune")
        model.zero_grad()  # a run that failed in the middle of a step left its gradients
        self.names = model.trained_names([task.name for task in active])
        examples = sum(len(task.data("train")) for task in active)
        self._orders = {
            task.name: Order(
                task.name, len(task.data("train")), settings.batch_size, settings.seed
            )
            for task in active
        }
        self._bare, self._ordered = make_optimizer(model, self.names, settings, examples)
        self.optimizer = self.accelerator.prepare(self._bare)

    def resume(self, checkpoint: Checkpoint, source: str) -> None:
        """Go on from a checkpoint; before `running`."""
        self._model.load(checkpoint.parameters, source=source)
        restore_moments(self.optimizer, self._ordered, checkpoint.moments)
        if self.accelerator.scaler is not None and checkpoint.scaler:
            self.accelerator.scaler.load_state_dict(checkpoint.scaler)

    @contextmanager
    def running(self) -> Iterator[None]:
        """The steps are taken within this block, in which random numbers are the run's."""
        try:
            with own_draws(self.device):
                yield
        finally:
            if self.device.type != "cpu":  # there it would only collect garbage, which takes long
                self.accelerator.free_memory()

    def step(self, step: int) -> Tensor:
        """Take the step of this number, counted from 0; the weighted loss comes on the device."""
        total, norm = self._gradients(step)
        # With fp16 an infinite gradient is ordinary: the scaler skips that step.
        watched = total if self.accelerator.scaler is not None else total + norm.to(total)
        if not bool(torch.isfinite(watched)):
            raise TrainingDivergedError(
                f"loss {float(total):g}, gradient norm {float(norm):g} in step {step + 1} with "
                f"task weights {dict(self._weights)}; a lower learning rate or a longer warm-up "
                f"may help"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total

    def checkpoint(
        self, step: int, seconds: float, evaluations: dict[int, dict[str, Any]]
    ) -> Checkpoint:
        """The run's state after this many steps and seconds, with its evaluations so far."""
        scaler = self.accelerator.scaler
        return Checkpoint(
            step=step,
            seconds=seconds,
            parameters=self._model.state(self.names),
            moments=optimizer_moments(self.optimizer, self._ordered),
            evaluations=evaluations,
            scaler=scaler.state_dict() if scaler else {},
        )

    def curvature(self) -> dict[str, Tensor] | None:
        """IVON's estimate by name, see `IVON.curvature`."""
        if not isinstance(self._bare, IVON):
            return None
        return dict(zip(self._ordered, self._bare.curvature()))

    def _gradients(self, step: int) -> tuple[Tensor, Tensor]:
        settings, accelerator = self._settings, self.accelerator
        seed_draws(derived_seed("step", settings.seed, step))
        if not self._model.training:  # an evaluation came before
            self._model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * settings.rate(step)
        total = torch.zeros((), device=self.device)
        with self._bare.sampled() if isinstance(self._bare, IVON) else nullcontext():
            for task in self._active:
                rows = self._orders[task.name].rows(step)
                batch = to_device(task.data("train")[rows], self.device)
                with accelerator.autocast():
                    outputs = self._model(batch, task.name)
                assert isinstance(task.loss, Loss)
                loss = self._weights[task.name] * task.loss(outputs.float(), batch[LABELS]).mean()
                total += loss.detach()
                accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(self._model.parameters(), settings.max_grad_norm)
        return total, norm
