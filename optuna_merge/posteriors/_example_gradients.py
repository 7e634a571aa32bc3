"""Gradients of single examples: what all estimates of the Fisher matrix are sums of."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Required, TypedDict, Unpack

import torch
from torch import Generator, Tensor
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from optuna_merge._base.labels import keep_ignored

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


class Labelling(TypedDict, total=False):
    """Arguments of every estimator; they are described where `squared_gradients` has them."""

    loss: Required[Loss]
    sample_labels: SampleLabels | None
    generator: Generator | None


def example_gradients(
    predict: Predict,
    params: Mapping[str, Tensor],
    batches: Iterable[Batch],
    *,
    chunk_size: int,
    **labelling: Unpack[Labelling],
) -> Iterator[dict[str, Tensor]]:
    """Gradients by parameter, with a leading dimension over some of the examples."""
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; expected at least 1")
    params = {name: tensor.detach() for name, tensor in params.items()}
    loss = labelling["loss"]

    def example_loss(params: Mapping[str, Tensor], example: Batch) -> Tensor:
        batch = {key: value.unsqueeze(0) for key, value in example.items()}
        return loss(predict(params, batch), batch[LABELS]).squeeze(0)

    gradients = _PerExample(example_loss)
    empty = True
    for chunk in _chunks(batches, chunk_size):

        def outputs(chunk: Batch = chunk) -> Tensor:
            with torch.no_grad():
                return predict(params, chunk)

        labels = drawn_labels(chunk[LABELS], outputs, labelling)
        for gradient in gradients(params, {**chunk, LABELS: labels}):
            yield gradient
            empty = False
    if empty:
        raise ValueError("no examples to estimate the curvature from; batches is empty")


def gradient_rows(
    predict: Predict,
    params: Mapping[str, Tensor],
    batches: Iterable[Batch],
    *,
    chunk_size: int,
    **labelling: Unpack[Labelling],
) -> Iterator[Tensor]:
    """The same as rows over all parameters, in their order: fp32, or fp64 where the first is."""
    dtype = wide(next(iter(params.values())))
    for gradient in example_gradients(
        predict, params, batches, chunk_size=chunk_size, **labelling
    ):
        rows = (gradient[name].to(dtype) for name in params)
        yield torch.cat([each.reshape(len(each), -1) for each in rows], 1)


def drawn_labels(own: Tensor, outputs: Callable[[], Tensor], labelling: Labelling) -> Tensor:
    """Labels drawn from the model's outputs, or the data's own, which need no outputs."""
    sample = labelling.get("sample_labels")
    if sample is None:
        return own
    return keep_ignored(sample(outputs(), labelling.get("generator")), own)


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


def wide(tensor: Tensor) -> torch.dtype:
    """The dtype that sums over examples are kept in: fp32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)
