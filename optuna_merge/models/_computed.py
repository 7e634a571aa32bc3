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
                undo = f"torch.nn.utils.parametrize.remove_parametrizations(layer, {tensor!r})"
                raise _refused(layer, tensor, "spectral norm", undo)
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                undo = f"torch.nn.utils.remove_spectral_norm(layer, {hook.name!r})"
                raise _refused(path, hook.name, "spectral norm", undo)
            if isinstance(hook, BasePruningMethod):
                name = str(hook._tensor_name)
                undo = f"torch.nn.utils.prune.remove(layer, {name!r})"
                raise _refused(path, name, "pruning", undo)
            if isinstance(hook, WeightNorm):
                undo = (
                    f"torch.nn.utils.remove_weight_norm(layer, {hook.name!r}), and then perhaps "
                    f"torch.nn.utils.parametrizations.weight_norm(layer)"
                )
                raise _refused(path, hook.name, "old-style weight norm", undo)


def _refused(layer: str, tensor: str, what: str, undo: str) -> ValueError:
    return ValueError(
        f"{tensor!r} of the layer {layer!r} is under {what}, which computes it in each forward "
        f"pass from what is not all parameters, and cannot be merged; take that away before the "
        f"model is made: {undo}; or do not train the layer"
    )
