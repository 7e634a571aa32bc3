"""LoRA adapters in a body: the factor A random, shared and frozen, the factor B trained."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from optuna_merge.models._trainable import Matching, Trainable

FACTOR_B = Matching(r"(^|\.)lora_B\.")
"""The factors B of all adapters."""

_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian"),
    "lora_dropout": (0, None),
    "modules_to_save": (None, [], ()),
    "use_dora": (False, None),
    "lora_bias": (False, None),
}
"""What options of peft's LoraConfig may be: B alone is trained, from zero, without dropout."""


def add_lora(body: nn.Module, config: Any, seed: int, trainable: Trainable) -> Trainable:
    """Put LoRA adapters by a `peft.LoraConfig` (or None) into a body; give what is trained then.

    An update B A is linear in B alone, so that with one frozen A (of the seed) for all tasks a
    merge of the factors B is the merge of the updates: the weighted mean of B gives that of B A.
    """
    if config is None:
        return trainable
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("adapters need peft: pip install peft") from error
    if type(config) is not LoraConfig:
        raise TypeError(f"adapter must be a peft.LoraConfig, got {type(config).__name__}")
    if trainable != "all":
        raise ValueError(
            f"with adapter= the adapters' factors B are trained and nothing else of the body; "
            f"leave out trainable={trainable!r}, and choose layers by target_modules and "
            f"layers_to_transform of the LoraConfig"
        )
    for option, allowed in _PLAIN.items():
        value = getattr(config, option, None)
        if value not in allowed:
            raise ValueError(
                f"LoraConfig with {option}={value!r}: expected {allowed[0]!r}: the factors "
                f"B alone are trained, from zero, and frozen layers have no dropout"
            )
    before = {name for name, _ in body.named_parameters()}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, body)
    for name, _ in body.named_parameters():
        known = name.replace(".base_layer.", ".") in before
        if not known and not re.search(r"(^|\.)lora_[AB]\.", name):
            raise ValueError(
                f"the LoraConfig adds {name!r}, which is neither a factor A nor B of a linear "
                f"layer or convolution (an embedding's A starts at zero and would stay there); "
                f"leave it out of target_modules"
            )
    return FACTOR_B
