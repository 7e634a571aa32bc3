"""The processes of one `accelerate launch`: the main one commands, the others train along."""

from __future__ import annotations

import datetime
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import patch_environment
from torch import Tensor

from optuna_merge.exceptions import TrainingDivergedError
from optuna_merge.finetuning._shards import Sharding

_logger = logging.getLogger(__name__)

_FOREVER = datetime.timedelta(weeks=8)  # the others wait while the main process previews
_BUCKET = 1 << 24  # gradients summed at once
_REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}


def make_accelerator(mixed_precision: str) -> Accelerator:
    """Accelerate's choice of device and precision, for this process."""
    # Accelerate holds one precision for the whole process, but runs may differ in theirs.
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed_precision:
        AcceleratorState._reset_state()
    patient = InitProcessGroupKwargs(timeout=_FOREVER)
    if Sharding.of_launch() is not None:  # else transformers fills bodies in one process only
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    with patch_environment(ACCELERATE_USE_FSDP="false"):  # the training loop cuts models itself
        return Accelerator(mixed_precision=mixed_precision, kwargs_handlers=[patient])


class Group:
    """The processes that share out every training step, by data parallelism.

    Messages from the main process are JSON and tensors, over a connection of the CPUs.

    Args:
        sharding: How models are cut for training; None: every process trains a whole one.

    Attributes:
        rank: Of this process; 0 is the main one.
        size: Number of processes.
        sharding: As given.
    """

    def __init__(self, sharding: Sharding | None = None) -> None:
        self.sharding = sharding
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._commands: Any = dist.new_group(backend="gloo", timeout=_FOREVER)
        self._is_broken = False

    @property
    def is_main(self) -> bool:
        """Whether this process commands."""
        return self.rank == 0

    def broadcast(self, message: Any = None) -> Any:
        """The main process's message, on all processes."""
        content = torch.zeros(0, dtype=torch.uint8)
        if self.is_main:
            content = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
        size = torch.tensor([content.numel()])
        dist.broadcast(size, 0, group=self._commands)
        if not self.is_main:
            content = torch.zeros(int(size), dtype=torch.uint8)
        dist.broadcast(content, 0, group=self._commands)
        return json.loads(bytes(content.tolist()))

    def broadcast_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The main process's tensors, on the CPU of all processes."""
        described = self.broadcast(
            [[n, list(t.shape), str(t.dtype).removeprefix("torch.")] for n, t in tensors.items()]
        )
        received = {}
        for name, shape, dtype in described:
            tensor = torch.empty(shape, dtype=getattr(torch, dtype))
            if self.is_main:
                tensor = tensors[name].detach().cpu().contiguous()
            dist.broadcast(tensor, 0, group=self._commands)
            received[name] = tensor
        return received

    def agree(self, holds: bool) -> bool:
        """Whether it holds on all processes."""
        failing = torch.tensor([0 if holds else 1])
        dist.all_reduce(failing, group=self._commands)
        return int(failing) == 0

    def sum_gradients(self, parameters: Sequence[Tensor], total: Tensor) -> None:
        """Sum gradients, and `total`, over the processes, in place.

        A parameter that has no gradient anywhere is left without.
        """
        present = [float(p.grad is not None) for p in parameters]
        header = torch.cat([total.float().reshape(1), torch.tensor(present).to(total.device)])
        dist.all_reduce(header)
        total.copy_(header[0])
        wanted = [p for p, count in zip(parameters, header[1:].tolist()) if count]
        while wanted:
            size = 0
            bucket: list[Tensor] = []
            while wanted and (not bucket or size + wanted[0].numel() <= _BUCKET):
                if bucket and wanted[0].dtype != bucket[0].dtype:
                    break
                bucket.append(wanted.pop(0))
                size += bucket[-1].numel()
            zeros = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = torch.cat([gradient.flatten() for gradient in zeros])
            dist.all_reduce(flat)
            pieces = torch.split(flat, [p.numel() for p in bucket])
            for parameter, piece in zip(bucket, pieces):
                parameter.grad = piece.view_as(parameter).clone()

    @contextmanager
    def verdict(self) -> Iterator[None]:
        """On the main process: what is raised in this block ends the run on all processes."""
        try:
            yield
        except BaseException:
            self.broadcast(False)
            raise
        self.broadcast(True)

    @contextmanager
    def lockstep(self) -> Iterator[None]:
        """A step that all processes take; when one fails alone in it, the group is lost."""
        try:
            yield
        except TrainingDivergedError:  # all processes see it
            raise
        except BaseException:
            self._is_broken = True
            raise

    def end(self) -> None:
        """On the main process: tell the others that it is over, if they can still be told."""
        if self._is_broken:
            return
        try:
            self.broadcast(["end"])
        except RuntimeError as error:
            _logger.warning("another process of the launch has died: %s", error)


_current: Group | None = None


def current_group() -> Group | None:
    """The group that this process belongs to, within `joined_group`; else None."""
    return _current


@contextmanager
def joined_group() -> Iterator[Group | None]:
    """Within this block the processes of the launch train together; None: there is only one.

    Raises:
        ValueError: they were launched for DeepSpeed or Megatron-LM, or with settings of FSDP that
            finetunes can't follow.
    """
    global _current
    for variable, name in _REFUSED.items():
        if os.environ.get(variable, "").lower() == "true":
            raise ValueError(
                f"launched with {name}, but finetunes run by data parallelism or in shards of "
                f"FSDP; launch with `accelerate launch --multi_gpu`, or with `--use_fsdp "
                f"--fsdp_version 2`"
            )
    sharding = Sharding.of_launch()
    if make_accelerator("no").num_processes == 1:
        yield None
        return
    _current = Group(sharding)
    try:
        yield _current
    finally:
        _current = None
