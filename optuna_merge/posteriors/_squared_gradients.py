"""The diagonal of the Fisher matrix from squared per-example gradients."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Generator, Tensor
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

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
    chunk_size: int = 32,
    generator: Generator | None = None,
) -> dict[str, Tensor]:
    """Mean over examples of the squared gradient of each example's loss.

    With labels sampled from the model this estimates the diagonal of the true Fisher matrix, which
    for cross-entropy and squared error is that of the Gauss-Newton matrix; with the data's own
    labels it is the empirical Fisher, which vanishes where the data are fitted. It is the data
    part, on the scale of the averaged loss: add the prior's precision to get a posterior's
    (arXiv 2412.08147, arXiv 2310.12808). A squared minibatch gradient would be too small by the
    batch size.

    Args:
        predict: `predict(params, batch) -> outputs`, without randomness (the model in eval mode)
            and of the parameters given, as `torch.func.functional_call` does it. It is called
            under vmap with a batch of one example, its leading dimension kept; code that looks
            into a tensor (Hugging Face models do, into a two-dimensional attention mask) can't be
            vmapped and is called one example after the other instead, to the same result.
        params: Parameters by name to differentiate by.
        batches: Batches of equal keys, each tensor of leading dimension B; labels at "labels".
        loss: Outputs and labels of B examples to B losses.
        sample_labels: `categorical_labels`, `gaussian_labels(...)` or your own; None takes the
            data's labels.
        chunk_size: Examples whose gradients are held at once; memory is this times the parameters.
        generator: Of the sampled labels, on the outputs' device.

    Returns:
        Non-negative tensors with the names and shapes of `params`, in fp32 (fp64 for fp64).

    Raises:
        ValueError: no examples, a batch without labels, bad chunk size, or dropout that is on.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; expected at least 1")
    params = {name: tensor.detach() for name, tensor in params.items()}
    total = {name: torch.zeros_like(p, dtype=_wide(p)) for name, p in params.items()}
    count = 0

    def example_loss(params: Mapping[str, Tensor], example: Batch) -> Tensor:
        batch = {key: value.unsqueeze(0) for key, value in example.items()}
        return loss(predict(params, batch), batch[LABELS]).squeeze(0)

    gradients = _PerExample(example_loss)
    for chunk in _chunks(batches, chunk_size):
        if sample_labels is not None:
            with torch.no_grad():
                chunk[LABELS] = sample_labels(predict(params, chunk), generator)
        for gradient in gradients(params, chunk):
            for name, rows in gradient.items():
                # Not squared in place: gradients of tied or added parameters may share memory.
                for row in rows.to(total[name].dtype):
                    total[name].addcmul_(row, row)
        count += len(chunk[LABELS])
    if not count:
        raise ValueError("no examples to estimate the curvature from; batches is empty")
    return {name: tensor.div_(count) for name, tensor in total.items()}


def categorical_labels(outputs: Tensor, generator: Generator | None = None) -> Tensor:
    """Draw class labels from logits of shape (..., classes): the model of cross-entropy."""
    probabilities = outputs.float().softmax(-1)
    flat = torch.multinomial(probabilities.flatten(0, -2), 1, generator=generator)
    return flat.view(outputs.shape[:-1])


def gaussian_labels(outputs: Tensor, generator: Generator | None = None) -> Tensor:
    """Draw targets from N(outputs, 1): the model of the loss 1/2 (output - target)^2."""
    noise = torch.randn(
        outputs.shape, generator=generator, dtype=outputs.dtype, device=outputs.device
    )
    return outputs + noise


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
