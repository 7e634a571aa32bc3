"""A Trainer that cuts its model into shards while it trains, and whole models besides.

FSDP cuts parameters, DeepSpeed's ZeRO 1 and 2 only what is kept of them besides.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from optuna_merge._base.swapped import swapped


def check_shards(trainer: Any) -> None:
    """See that a Trainer's shards are of a kind that is tested."""
    if trainer.is_fsdp_enabled:
        _check_fsdp(trainer, trainer.accelerator.state.fsdp_plugin)
    how = None
    if trainer.is_deepspeed_enabled and trainer.accelerator.state.deepspeed_plugin.zero_stage > 2:
        how = "DeepSpeed's ZeRO 3; expected ZeRO 2 or 1, or FSDP"
    if getattr(trainer, "is_distributed_loading_by_transformers", False):
        how = "a device mesh when it is loaded; expected FSDP, by the Trainer's arguments"
    if how is not None:
        raise ValueError(
            f"the Trainer cuts its model by {how}. Or study your launch by om.from_command"
        )


def _check_fsdp(trainer: Any, plugin: Any) -> None:
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"the Trainer cuts its model by FSDP of version {plugin.fsdp_version}; expected "
            f"version 2: fsdp_config={{'version': 2}}, or fsdp_version: 2 in accelerate's "
            f"configuration"
        )
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "the Trainer has cpu_ram_efficient_loading, by which all processes but one load an "
            "empty model, but previews are evaluated in a whole one; set "
            "fsdp_config={'cpu_ram_efficient_loading': False}"
        )
    if plugin.activation_checkpointing and getattr(trainer.model, "peft_config", None):
        raise ValueError(
            "the Trainer has FSDP's activation_checkpointing, under which PEFT saves adapters "
            "without a tensor; set fsdp_config={'activation_checkpointing': False}, and the "
            "training argument gradient_checkpointing=True"
        )


def keep_whole(trainer: Any) -> None:
    """Have a Trainer that will never train evaluate its model in one piece, in each process."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        trainer.is_fsdp_enabled = trainer.is_deepspeed_enabled = False
        trainer.model.to(trainer.args.device)  # a Trainer leaves that to who cuts the model


def gathered(trainer: Any, names: Collection[str]) -> dict[str, Tensor]:
    """Whole parameters of a Trainer that has trained; of shards on rank 0's CPU. All call this."""
    if not trainer.is_fsdp_enabled:
        parameters = dict(trainer.model.named_parameters())
        return {name: parameters[name].detach() for name in names}
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    state: dict[str, Any] = get_model_state_dict(trainer.model, options=options)
    return {name: state[name] for name in names if name in state}


def saves_whole(trainer: Any) -> AbstractContextManager[None]:
    """Within it `save_model` saves a whole model, even if checkpoints are of shards."""
    if not trainer.is_fsdp_enabled:
        return nullcontext()
    from torch.distributed.fsdp import StateDictType

    # The plugin is that of all Trainers of this process.
    plugin = trainer.accelerator.state.fsdp_plugin
    return swapped(plugin, "state_dict_type", StateDictType.FULL_STATE_DICT)
