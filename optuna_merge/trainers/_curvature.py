"""The diagonal of the curvature of a Trainer's own loss, from gradients of single examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from optuna_merge.trainers._labels import terms, with_drawn_labels


def squared_gradients(
    trainer: Any,
    examples: Iterable[Mapping[str, Any]],
    names: Iterable[str],
    *,
    seed: int,
    shifts: bool,
    per_token: bool,
) -> dict[str, Tensor]:
    """The diagonal of the Fisher information of the averaged loss, labels drawn from the model.

    An example's loss is a mean of n terms (label tokens, say) with gradient g. The square of the
    sum's gradient, n^2 g^2, is the Fisher information of the example, if labels are drawn term by
    term. It is averaged as the loss is: over all terms (`per_token`), or over examples of 1/n of
    it. Batches are of one example; tensors come in fp32 at least, on the CPU.
    """
    model = trainer.model
    model.eval()
    named = dict(model.named_parameters())
    parameters = {name: named[name] for name in names}
    totals = {
        name: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))
        for name, p in parameters.items()
    }
    generator = torch.Generator().manual_seed(seed)
    count = 0
    for batch in examples:
        n = terms(batch, shifts=shifts)
        if n == 0:
            continue
        drawn = with_drawn_labels(model, batch, generator, shifts=shifts)
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(model, drawn)
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for total, gradient in zip(totals.values(), found):
            if gradient is not None:
                gradient = gradient.to(total.dtype)
                total.addcmul_(gradient, gradient, value=float(n * n if per_token else n))
        count += n if per_token else 1
    if not count:
        raise ValueError("there are no examples with labels to estimate the curvature from")
    return {name: total.div_(count).cpu() for name, total in totals.items()}
