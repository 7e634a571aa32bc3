"""Models in shards (FSDP): every process holds a part of each tensor, cut along its rows."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from optuna_merge.models import MultitaskModel, find_layers

_REFUSED = {
    "FSDP_OFFLOAD_PARAMS": "--fsdp_offload_params",
    "FSDP_ACTIVATION_CHECKPOINTING": "--fsdp_activation_checkpointing",
}


@dataclass(frozen=True)
class Sharding:
    """How a launch wants models in shards; accelerate's settings of FSDP 2.

    Attributes:
        frees: Whether a layer's parameters are given up between its forward and backward pass.
        layers: Classes of the modules whose parameters are put together one module at a time;
            none: that of the body's layers (`find_layers`). What is outside of them is together
            for the whole step.
    """

    frees: bool = True
    layers: tuple[str, ...] = ()

    @classmethod
    def of_launch(cls) -> Sharding | None:
        """That of `accelerate launch --use_fsdp`; None: launched otherwise.

        Raises:
            ValueError: with FSDP 1, or settings that finetunes can't follow.
        """
        if not _is_set("ACCELERATE_USE_FSDP"):
            return None
        version = os.environ.get("FSDP_VERSION", "1")
        if version != "2":
            raise ValueError(
                f"launched with FSDP {version}, but finetunes run in shards of FSDP 2 only; "
                f"launch with `accelerate launch --use_fsdp --fsdp_version 2`"
            )
        for variable, flag in _REFUSED.items():
            if _is_set(variable):
                raise ValueError(
                    f"launched with `{flag} true`, which finetunes can't do; launch without it"
                )
        layers = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "")
        return cls(
            # Unless told otherwise `accelerate launch` sets FSDP 1's word for "true".
            frees=os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false",
            layers=tuple(name.strip() for name in layers.split(",") if name.strip()),
        )


def in_shards(model: MultitaskModel, sharding: Sharding, device: torch.device) -> MultitaskModel:
    """A copy of the model of which this process holds its part, on the device.

    All processes must call it, with the same values in the model. The model itself stays whole;
    beside it there never is more than one whole tensor.

    Raises:
        ValueError: as `hollow_shards`.
    """
    copy = hollow_shards(model, sharding, device)
    copy.to_empty(device=device)
    with torch.no_grad():
        for source, parameter in zip(model.parameters(), copy.parameters()):
            _fill(parameter, source)
        for known, buffer in zip(model.buffers(), copy.buffers()):
            buffer.copy_(known)
    return copy


def hollow_shards(
    model: MultitaskModel, sharding: Sharding, device: torch.device
) -> MultitaskModel:
    """`in_shards` without values, which tells whether the model can be cut.

    Raises:
        ValueError: layers that aren't there, or parameters that can't be cut: scalars, and those
            that a layer has in common with something else.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    scalars = [name for name, parameter in model.named_parameters() if parameter.ndim == 0]
    if scalars:
        raise ValueError(
            f"the parameter {scalars[0]!r} is a scalar, which FSDP can't cut; launch with "
            f"`accelerate launch --multi_gpu`"
        )
    mesh: Any = init_device_mesh(device.type, (dist.get_world_size(),))
    copy = model.hollow()
    for layer in _layers(copy, sharding.layers):
        fully_shard(layer, mesh=mesh, reshard_after_forward=sharding.frees)
    fully_shard(copy, mesh=mesh)
    names = {name for name, _ in model.named_parameters()}
    if split := {name for name, _ in copy.named_parameters()} ^ names:
        raise ValueError(
            f"{sorted(split)}: a parameter that a layer has in common with something outside of "
            f"it, of which FSDP would train two copies; launch with `accelerate launch "
            f"--multi_gpu`"
        )
    return copy


def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, as `like` is cut; all of it if that is whole."""
    if not _is_cut(like):
        return tensor
    part = torch.empty_like(like, dtype=tensor.dtype)
    with torch.no_grad():
        _fill(part, tensor)
    return part


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor in shards, which all processes must ask for; else the tensor."""
    return tensor.full_tensor() if _is_cut(tensor) else tensor  # type: ignore[attr-defined]


def _layers(model: MultitaskModel, classes: tuple[str, ...]) -> list[nn.Module]:
    """The layers, inner ones first."""
    modules = [module for module in model.modules() if any(True for _ in module.parameters())]
    if classes:
        found = [module for module in modules if type(module).__name__ in classes]
        missing = set(classes) - {type(module).__name__ for module in found}
        if missing:
            raise ValueError(
                f"--fsdp_transformer_layer_cls_to_wrap names {sorted(missing)}, but the model has "
                f"no such module"
            )
    else:
        try:
            kinds = {type(layer) for layer in find_layers(model.body)[1].children()}
        except ValueError:  # none to be told apart
            return []
        found = [module for module in modules if type(module) in kinds]
    return [module for module in reversed(found) if module is not model]


def _fill(target: Tensor, source: Tensor) -> None:
    """Copy this process's part of `source` to its part of `target`."""
    if not _is_cut(target):
        target.copy_(source)
        return
    parts = source.chunk(dist.get_world_size())  # too few for the last ones where it is short
    if dist.get_rank() < len(parts):
        target.to_local().copy_(parts[dist.get_rank()])  # type: ignore[attr-defined]


def _is_cut(tensor: Tensor) -> bool:
    # By its method: to import its class takes a second, for runs that have no shards as well.
    return hasattr(tensor, "full_tensor")


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1", "yes")
