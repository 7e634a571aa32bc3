"""The diagonal of the Fisher matrix from squared per-example gradients."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Generator, Tensor
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from optuna_merge._labels import keep_ignored

_logger = logging.getLogger(__name__)

Batch = Mapping[str, Tensor]
Predict = Callable[[Mapping[str, Tensor], Batch], Tensor]
"""Parameters and a batch to outputs, one row per example."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""Outputs and labels to one loss per example."""
SampleLabels = Callable[[Tensor, Generator | None], Tensor]
"""Outputs to labels drawn from the model's own predictive distribution."""

LABELS = "labels"

_TRAINING_MODE = (
    "the model draws random numbers, so it is in training mode: call model.eval() before its "
    "curvature is estimated"
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
    """
    total = {name: torch.zeros_like(p, dtype=_wide(p)) for name, p in params.items()}
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


def example_gradients(
    predict: Predict,
    params: Mapping[str, Tensor],
    batches: Iterable[Batch],
    *,
    loss: Loss,
    sample_labels: SampleLabels | None,
    classes: int | None,
    chunk_size: int,
    generator: Generator | None,
) -> Iterator[tuple[dict[str, Tensor], list[float]]]:
    """Gradients g_i, a leading dimension over them, and weights w_i that add up to 1 an example.

    The Fisher matrix is sum_i w_i g_i g_i' / sum_i w_i. Arguments and errors are those of
    `squared_gradients`.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; expected at least 1")
    if sample_labels is not None and classes is not None:
        raise ValueError("labels are either sampled or summed over: give sample_labels or classes")
    params = {name: tensor.detach() for name, tensor in params.items()}

    def example_loss(params: Mapping[str, Tensor], example: Batch) -> Tensor:
        batch = {key: value.unsqueeze(0) for key, value in example.items()}
        return loss(predict(params, batch), batch[LABELS]).squeeze(0)

    gradients = _PerExample(example_loss)
    empty = True
    for chunk in _chunks(batches, chunk_size):
        for labels, weights in _labels(predict, params, chunk, sample_labels, classes, generator):
            start = 0
            for gradient in gradients(params, {**chunk, LABELS: labels}):
                stop = start + len(next(iter(gradient.values())))
                yield gradient, weights[start:stop]
                start, empty = stop, False
    if empty:
        raise ValueError("no examples to estimate the curvature from; batches is empty")


def _labels(
    predict: Predict,
    params: Mapping[str, Tensor],
    chunk: Batch,
    sample: SampleLabels | None,
    classes: int | None,
    generator: Generator | None,
) -> list[tuple[Tensor, list[float]]]:
    """The labels to take gradients with, each with one weight per example."""
    own = chunk[LABELS]
    equal = [1.0] * len(own)
    if sample is None and classes is None:
        return [(own, equal)]
    with torch.no_grad():
        outputs = predict(params, chunk)
    if sample is not None:
        return [(keep_ignored(sample(outputs, generator), own), equal)]
    likely = outputs.double().softmax(-1)
    if likely.shape != (len(own), classes):
        raise ValueError(
            f"classes is {classes}, but outputs have the shape {tuple(outputs.shape)}; expected "
            f"({len(own)}, {classes})"
        )
    return [
        (torch.full_like(own, label), column.tolist()) for label, column in enumerate(likely.T)
    ]


class _PerExample:
    """Gradients of a function of (params, example), vmapped if the function allows it."""

    def __init__(self, function: Callable[[Mapping[str, Tensor], Batch], Tensor]) -> None:
        self._one = grad(function)
        self._all = vmap(self._one, in_dims=(None, 0))
        self._vmapped = True

    def __call__(self, params: Mapping[str, Tensor], chunk: Batch) -> Iterator[dict[str, Tensor]]:
        """Gradients with a leading dimension over examples, in one piece or one by one."""
        # The fused attention kernels have no batching rule; the plain one is made of products.
        # Without no_grad, a graph of the gradients would be kept for the model's other parameters.
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            if self._vmapped:
                try:
                    yield self._all(params, chunk)
                    return
                except RuntimeError as error:
                    self._explain(error)
                    self._vmapped = False
            for i in range(len(chunk[LABELS])):
                before = _random_state(chunk[LABELS].device)
                gradient = self._one(params, {key: value[i] for key, value in chunk.items()})
                if not torch.equal(before, _random_state(chunk[LABELS].device)):
                    raise ValueError(_TRAINING_MODE)
                yield {name: rows.unsqueeze(0) for name, rows in gradient.items()}

    @staticmethod
    def _explain(error: RuntimeError) -> None:
        if "randomness" in str(error):
            raise ValueError(_TRAINING_MODE) from error
        if "data-dependent" not in str(error):
            raise error
        _logger.info("the model can't be vmapped; its examples are taken one by one")


def _chunks(batches: Iterable[Batch], size: int) -> Iterator[dict[str, Tensor]]:
    for batch in batches:
        if LABELS not in batch:
            raise ValueError(f"a batch has no {LABELS!r}; its keys are {sorted(batch)}")
        for start in range(0, len(batch[LABELS]), size):
            yield {key: value[start : start + size] for key, value in batch.items()}


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
