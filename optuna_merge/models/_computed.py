"""Layers whose weights are computed from other tensors: weight norm, spectral norm, pruning."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


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
