"""The diagonal of the Fisher matrix from squared per-example gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Generator, Tensor

from optuna_merge.posteriors._example_gradients import (
    Batch,
    Loss,
    Predict,
    SampleLabels,
    example_gradients,
    wide,
)


def squared_gradients(
    predict: Predict,
    params: Mapping[str, Tensor],
    batches: Iterable[Batch],
    *,
    loss: Loss,
    sample_labels: SampleLabels | None = None,
    classes: int | None = None,
    chunk_size: int = 32,
    generator: Generator | None = None,
) -> dict[str, Tensor]:
    """Mean over examples of the squared gradient of each example's loss.

    With labels sampled from the model, or summed over all classes, this is the diagonal of the
    true Fisher matrix, which for cross-entropy and squared error is that of the Gauss-Newton
    matrix; with the data's own labels it is the empirical Fisher, which vanishes where the data
    are fitted. It is the data part, on the scale of the averaged loss: add the prior's precision
    to get a posterior's (arXiv 2412.08147, arXiv 2310.12808). A squared minibatch gradient would
    be too small by the batch size.

    Args:
        predict: `predict(params, batch) -> outputs`, without randomness (the model in eval mode)
            and of the parameters given, as `torch.func.functional_call` does it. It is called
            under vmap with a batch of one example, its leading dimension kept; code that looks
            into a tensor (Hugging Face models do, into a two-dimensional attention mask) can't be
            vmapped and is called one example after the other instead, to the same result.
        params: Parameters by name to differentiate by.
        batches: Batches of equal keys, each tensor of leading dimension B; labels at "labels".
        loss: Outputs and labels of B examples to B losses, each the negative logarithm of the
            density that labels are sampled from; a mean over n labels of an example would give
            curvature too small by n, and must be multiplied by sqrt(n).
        sample_labels: `categorical_labels`, `gaussian_labels` or your own; None takes the data's
            labels. Where the data's integer labels are -100, none is drawn.
        classes: For cross-entropy with one label an example, of few classes: the exact expectation
            over the labels 0 to classes - 1, at one gradient a class; in place of sample_labels.
        chunk_size: Examples whose gradients are held at once; memory is this times the parameters.
        generator: Of the sampled labels.

    Returns:
        Non-negative tensors with the names and shapes of `params`, in fp32 (fp64 for fp64).

    Raises:
        ValueError: no examples, a batch without labels, bad chunk size, dropout that is on, or
            both sample_labels and classes.

    Examples:
        Of a linear regression with the loss 1/2 (output - label)^2 it is the mean of x^2:

        >>> from optuna_merge.posteriors import gaussian_labels
        >>> x = torch.tensor([[1.0], [3.0]]).repeat(5000, 1)
        >>> fisher = squared_gradients(
        ...     lambda params, batch: batch["x"] @ params["w"],
        ...     {"w": torch.zeros(1)},
        ...     [{"x": x, "labels": torch.zeros(10000)}],
        ...     loss=lambda outputs, labels: 0.5 * (outputs - labels).square(),
        ...     sample_labels=gaussian_labels,
        ...     chunk_size=1000,
        ...     generator=torch.Generator().manual_seed(0),
        ... )
        >>> round(fisher["w"].item())
        5
    """
    total = {name: torch.zeros_like(p, dtype=wide(p)) for name, p in params.items()}
    count = 0.0
    for gradient, weights in example_gradients(
        predict,
        params,
        batches,
        loss=loss,
        sample_labels=sample_labels,
        classes=classes,
        chunk_size=chunk_size,
        generator=generator,
    ):
        for name, rows in gradient.items():
            # Not squared in place: gradients of tied or added parameters may share memory.
            for row, weight in zip(rows.to(total[name].dtype), weights):
                total[name].addcmul_(row, row, value=weight)
        count += sum(weights)
    return {name: tensor.div_(count) for name, tensor in total.items()}
