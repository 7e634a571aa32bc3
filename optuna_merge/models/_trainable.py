"""Which of a body's parameters are trained and merged; the others stay as pretrained."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from torch import nn


@dataclass(frozen=True)
class LastLayers:
    """The last `count` layers of the body and everything behind them (final norm, pooler)."""

    count: int


@dataclass(frozen=True)
class Matching:
    """The parameters whose name in the body contains a match of the regular expression."""

    pattern: str


Trainable = Literal["all"] | LastLayers | Matching
"""What is trained and merged. Heads always are trained; shared heads are merged as well."""


def find_layers(body: nn.Module) -> tuple[str, nn.Module]:
    """Name and module of the body's layers: its longest list of modules of one class."""
    best: tuple[str, nn.Module] | None = None
    length = 1
    for name, module in body.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        same_class = len({type(layer) for layer in module}) == 1
        if same_class and len(module) > length:
            best, length = (name, module), len(module)
    if best is None:
        raise ValueError(
            f"no list of layers found in {type(body).__name__}; choose parameters with "
            f"Matching(pattern) instead of LastLayers"
        )
    return best


def trainable_names(body: nn.Module, trainable: Trainable) -> list[str]:
    """Names of the body's parameters that are trained, in the body's order."""
    names = [name for name, _ in body.named_parameters()]
    if trainable == "all":
        return names
    if isinstance(trainable, Matching):
        chosen = [name for name in names if re.search(trainable.pattern, name)]
        if not chosen:
            raise ValueError(
                f"no parameter of {type(body).__name__} matches {trainable.pattern!r}; "
                f"names look like {names[:3]}"
            )
        return chosen
    if isinstance(trainable, LastLayers):
        prefix, layers = find_layers(body)
        total = len(list(layers.children()))
        if not 0 <= trainable.count <= total:
            raise ValueError(
                f"LastLayers({trainable.count}): {type(body).__name__} has {total} layers"
            )
        inside = f"{prefix}." if prefix else ""  # the body itself may be the list
        layer_of = {
            name: int(name[len(inside) :].split(".")[0])
            for name in names
            if name.startswith(inside)
        }
        behind = names[names.index([*layer_of][-1]) + 1 :]
        last = {name for name, layer in layer_of.items() if layer >= total - trainable.count}
        return [name for name in names if name in last or name in behind]
    raise TypeError(f"trainable must be 'all', LastLayers or Matching, got {trainable!r}")
