"""What of a model is trained and merged, and what can't be; the rest stays as pretrained."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


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


def check_computed_weights(model: nn.Module) -> None:
    """See that every weight that is trained is a function of parameters alone.

    Such are `torch.nn.utils.parametrizations.weight_norm` and `orthogonal`: what they are computed
    from is trained and merged like all parameters. What a forward pass leaves in the module (the
    vectors of a spectral norm, the weight of an old-style hook) no merge can put there.
    """
    for path, module in model.named_modules():
        if not any(p.requires_grad for p in module.parameters(recurse=False)):
            continue
        if isinstance(module, ParametrizationList):
            layer, _, tensor = path.rpartition(".parametrizations.")
            if any(isinstance(each, _SpectralNorm) for each in module):
                undo = "parametrize.remove_parametrizations"
                raise _refused(layer, tensor, "spectral norm", undo)
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                raise _refused(path, hook.name, "spectral norm", "remove_spectral_norm")
            if isinstance(hook, BasePruningMethod):
                raise _refused(path, str(hook._tensor_name), "pruning", "prune.remove")
            if isinstance(hook, WeightNorm):
                more = ", and then perhaps torch.nn.utils.parametrizations.weight_norm(layer)"
                what = "old-style weight norm"
                raise _refused(path, hook.name, what, "remove_weight_norm", more)


def _refused(layer: str, tensor: str, what: str, undo: str, more: str = "") -> ValueError:
    return ValueError(
        f"{tensor!r} of the layer {layer!r} is under {what}, which computes it in each forward "
        f"pass from what is not all parameters, and cannot be merged; take that away before the "
        f"model is made: torch.nn.utils.{undo}(layer, {tensor!r}){more}; or do not train the layer"
    )
