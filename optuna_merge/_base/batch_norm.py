"""Running statistics of batch norms, estimated anew for parameters that were changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_Moments = tuple[int, Tensor, Tensor]
"""Values per channel, their mean, and their variance (divided by the count)."""


def running_batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """The module's batch norms that have running statistics, itself included."""
    return [
        each
        for each in module.modules()
        if isinstance(each, _BatchNorm) and each.running_mean is not None
    ]


def reestimate_batch_norm(
    module: nn.Module, batches: Iterable[Any], predict: Callable[[Any], object] | None = None
) -> None:
    """Set all batch norms' running statistics to those of the batches, in place.

    After a merge the activations are others than in any of the merged models. As in stochastic
    weight averaging (arXiv 1803.05407, section 3.3), all layers are estimated in one pass in which
    batch norms normalise by each batch's own statistics, as they do in training; all else is in
    evaluation mode. So take batches of the size used in training, or larger.

    Mean and variance are those of all values in all batches together, each batch counted by its
    values, in fp32 at least; the variance is unbiased, as torch's own. What was there before has
    no influence, nor have the layers' momentum. Batch norms that the batches don't reach are left
    alone.

    Args:
        module: Holds the batch norms. May be a part of what `predict` runs.
        batches: What `predict` takes; a few thousand examples without labels are plenty.
        predict: Runs a batch through the model, on the right device. Default: `module(batch)`. For
            a loader of pairs: `lambda batch: model(batch[0])`.

    Raises:
        ValueError: no batches, or a batch with one value per channel, of which torch says so. The
            statistics are unchanged then.
    """
    norms = running_batch_norms(module)
    if not norms:
        return
    predict = module if predict is None else predict
    seen: dict[int, list[_Moments]] = {index: [] for index in range(len(norms))}

    def watch(index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[index].append(_moments(inputs[0]))

        return hook

    modes = {each: each.training for each in module.modules()}
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    hooks = [norm.register_forward_pre_hook(watch(index)) for index, norm in enumerate(norms)]
    empty = True
    try:
        # Not through train(): of a batch norm with a dropout inside, only the norm is meant.
        for each in modes:
            each.training = False
        for norm in norms:
            norm.training = True
        with torch.no_grad():
            for batch in batches:
                predict(batch)
                empty = False
    finally:
        for handle in hooks:
            handle.remove()
        for each, mode in modes.items():
            each.training = mode
        with torch.no_grad():
            for norm, buffers in zip(norms, before):
                for name, buffer in norm.named_buffers():
                    buffer.copy_(buffers[name])
    if empty:
        raise ValueError("no batches to estimate the batch norms' statistics from")
    with torch.no_grad():
        for index, norm in enumerate(norms):
            if seen[index]:
                mean, variance = _pooled(seen[index])
                assert norm.running_mean is not None and norm.running_var is not None
                norm.running_mean.copy_(mean)
                norm.running_var.copy_(variance)


def _moments(values: Tensor) -> _Moments:
    """Of one batch (batch, channels, ...)."""
    wide = values.detach().to(torch.promote_types(values.dtype, torch.float32))
    over = [dimension for dimension in range(wide.ndim) if dimension != 1]
    variance, mean = torch.var_mean(wide, over, correction=0)
    return wide.numel() // wide.shape[1], mean, variance


def _pooled(moments: list[_Moments]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of all values."""
    counts, means, variances = zip(*moments)
    count = torch.tensor(counts, dtype=torch.float64).unsqueeze(1)
    mean_of, variance_of = (torch.stack(part).cpu().double() for part in (means, variances))
    share = count / count.sum()
    mean = (share * mean_of).sum(0)
    variance = (share * (variance_of + (mean_of - mean).square())).sum(0)
    return mean, variance * (count.sum() / (count.sum() - 1))
