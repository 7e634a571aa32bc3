"""Checkpoints of a finetune: safetensors, written atomically, checked when read."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from optuna_merge._base.tensors import load_sound, load_tensors, save_tensors

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A finetune after `step` steps; `moments` are `<moment>.<parameter>`."""

    step: int
    seconds: float
    parameters: dict[str, Tensor]
    moments: dict[str, Tensor]
    evaluations: dict[int, dict[str, Any]]
    scaler: dict[str, Any]


def save_checkpoint(path: Path, key: str, checkpoint: Checkpoint) -> str:
    """Write the checkpoint of the run that `key` identifies; return its content hash."""
    tensors = {f"parameter.{name}": tensor for name, tensor in checkpoint.parameters.items()}
    tensors |= {f"moment.{name}": tensor for name, tensor in checkpoint.moments.items()}
    metadata = {
        "kind": "optuna_merge checkpoint",
        "key": key,
        "step": str(checkpoint.step),
        "seconds": repr(checkpoint.seconds),
        "evaluations": json.dumps(checkpoint.evaluations),
        "scaler": json.dumps(checkpoint.scaler),
    }
    return save_tensors(tensors, path, metadata)


def load_checkpoint(path: Path, key: str) -> Checkpoint | None:
    """The checkpoint of the run that `key` identifies, or None if there is none to go on from.

    A file that is damaged or another run's is reported and left out: the run starts again.
    """
    if (found := load_sound(path, load_tensors, "starting again")) is None:
        return None
    tensors, metadata = found
    if metadata.get("key") != key:
        _logger.warning("starting again: %s belongs to a run with other settings", path)
        return None
    evaluations = {int(step): value for step, value in json.loads(metadata["evaluations"]).items()}
    return Checkpoint(
        step=int(metadata["step"]),
        seconds=float(metadata["seconds"]),
        parameters=_under("parameter.", tensors),
        moments=_under("moment.", tensors),
        evaluations=evaluations,
        scaler=json.loads(metadata["scaler"]),
    )


def optimizer_moments(optimizer: Optimizer, names: list[str]) -> dict[str, Tensor]:
    """The optimizer's state as named tensors; `names` are its parameters', in its order."""
    state = optimizer.state_dict()["state"]
    return {
        f"{moment}.{names[index]}": value.detach()
        for index, moments in state.items()
        for moment, value in moments.items()
    }


def restore_moments(optimizer: Optimizer, names: list[str], moments: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_moments`."""
    position = {name: index for index, name in enumerate(names)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        moment, _, name = key.partition(".")
        state.setdefault(position[name], {})[moment] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
