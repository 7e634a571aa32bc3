"""What a network does that none of its tensors tells."""

from __future__ import annotations

from typing import Any

from torch import nn


def beside_tensors(network: nn.Module) -> dict[str, Any]:
    """Rates of dropout and the scaling of adapters, by name, as JSON values.

    Two networks of equal tensors train and predict otherwise if these differ: LoRA's alpha and
    rank-stabilised scaling are numbers of the layers, and many bodies keep their rates of dropout
    in the config alone. Rates of zero are left out.
    """
    found: dict[str, Any] = {}
    configs: list[Any] = []  # of a body and its parts it is often one
    for name, module in network.named_modules():
        scaling = getattr(module, "scaling", None)  # of peft, by adapter; elsewhere a number
        if isinstance(scaling, dict) and scaling:
            found[name] = {str(adapter): float(factor) for adapter, factor in scaling.items()}
        elif rate := _rate(module):
            found[name] = round(rate, 6)  # timm computes some
        config: Any = getattr(module, "config", None)
        if hasattr(config, "to_dict") and not any(config is other for other in configs):
            configs.append(config)
            for field, value in config.to_dict().items():
                if "drop" in field and isinstance(value, int | float) and value:
                    found[f"{name}.config.{field}"] = value
    return found


def _rate(module: nn.Module) -> float:
    """The rate of a dropout layer, or of a network of timm that drops without such a layer."""
    is_layer = "Drop" in type(module).__name__  # torch's, timm's DropPath, people's own
    for attribute in ("p", "drop_prob") if is_layer else ("drop_rate",):
        rate = getattr(module, attribute, None)
        if isinstance(rate, int | float):
            return float(rate)
    return 0.0
