"""What labels say of a model's own loss: tokens it is averaged over, its curvature."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

from optuna_merge._base.labels import IGNORED, categorical_labels, gaussian_labels, keep_ignored


def shifts_labels(model: Any) -> bool:
    """Whether a position's output is for the next one's label: a causal language model."""
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    if getattr(getattr(core, "config", None), "is_encoder_decoder", False):
        return False
    return LOSS_MAPPING.get(getattr(core, "loss_type", None)) is ForCausalLMLoss


def label_tokens(batch: Mapping[str, Any], *, shifts: bool) -> Tensor | None:
    """Label tokens of each row of a batch; None: its labels are not of tokens."""
    labels = batch.get("shift_labels")
    if labels is None:
        labels = batch.get("labels")
        if isinstance(labels, Tensor) and labels.dim() > 1 and shifts:
            labels = labels[..., 1:]
    if not isinstance(labels, Tensor) or labels.dim() < 2 or labels.is_floating_point():
        return None
    return labels.ne(IGNORED).flatten(1).sum(1)


def terms(batch: Mapping[str, Any], *, shifts: bool) -> int:
    """Numbers that the loss of a batch of one example is the mean of."""
    tokens = label_tokens(batch, shifts=shifts)
    if tokens is not None:
        return int(tokens.sum())
    labels = batch.get("labels")
    floats = isinstance(labels, Tensor) and labels.is_floating_point()
    return labels.numel() if floats and labels is not None else 1


def with_drawn_labels(
    model: Any, batch: Mapping[str, Any], generator: Generator, *, shifts: bool
) -> dict[str, Any]:
    """The batch with labels drawn from the model; with its own where it isn't known how."""
    labels = batch.get("labels")
    if not isinstance(labels, Tensor) or "shift_labels" in batch:
        return dict(batch)
    shifted = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if shifted is not None and "decoder_input_ids" not in batch:
        # Else a decoder would read the drawn labels, and not be what they were drawn from.
        batch = {**batch, "decoder_input_ids": shifted(labels=labels)}
    with torch.no_grad():
        outputs = model(**batch)
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else None
    if not isinstance(logits, Tensor):
        return dict(batch)
    drawn = labels
    if labels.is_floating_point():
        kind = getattr(getattr(model, "config", None), "problem_type", None)
        outputs = logits.reshape(labels.shape) if logits.numel() == labels.numel() else None
        if outputs is not None and kind == "regression":
            # The loss is the whole squared error, not half of it: its variance is 1/2.
            drawn = outputs + (gaussian_labels(outputs, generator) - outputs) / math.sqrt(2)
        elif outputs is not None and kind == "multi_label_classification":
            chances = outputs.detach().float().sigmoid().cpu()
            drawn = torch.bernoulli(chances, generator=generator).to(labels)
    elif logits.shape[:-1] == labels.shape:
        drawn = categorical_labels(logits, generator).to(labels)
        if shifts:
            drawn = torch.cat([labels[..., :1], drawn[..., :-1]], -1)
    return {**batch, "labels": keep_ignored(drawn, labels)}


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
