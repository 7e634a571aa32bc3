"""Kronecker factors of the Fisher matrix, collected by hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from optuna_merge.posteriors._example_gradients import LABELS, Batch, Labelling, drawn_labels, wide

Factors = dict[str, tuple[Tensor, Tensor]]


def kronecker_fisher(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    predict: Callable[[Batch], Tensor],
    **labelling: Unpack[Labelling],
) -> tuple[Factors, dict[str, Tensor]]:
    """Factors and diagonals of a `KroneckerGaussian` for a model's layers.

    Linear layers and convolutions (of one group) get for their weight the pair (A, G): A is the
    mean of a a' over examples and positions, G the mean over examples of the sum of g g' over
    positions, with inputs a and gradients g at the outputs (K-FAC, arXiv 1503.05671; positions as
    in K-FAC-expand, arXiv 2311.00636). Their biases, layer norms and embeddings get the diagonal:
    exact squared gradients of each example. Others get nothing, nor do embeddings that are looked
    up once for the whole batch (positions): the prior decides on them.

    Args:
        model: In eval mode. A module that is called several times in a pass counts every call as
            further positions.
        batches: As in `squared_gradients`.
        predict: A batch to outputs, one row per example, by calling the model.
        labelling: `loss`, `sample_labels` and `generator`, as in `squared_gradients`.

    Returns:
        Factors and diagonals by name of a parameter that requires gradients: the data part.

    Raises:
        ValueError: the model is in training mode, no examples, a batch without labels, or a
            trained weight that several layers share, of which no pair of factors tells.
    """
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first")
    collectors = [
        collector
        for name, module in model.named_modules()
        if (collector := _collector(name, module)) is not None
    ]
    _check_unshared(collectors)
    handles = [collector.module.register_forward_hook(collector.hook) for collector in collectors]
    count = 0
    try:
        for batch in batches:
            if LABELS not in batch:
                raise ValueError(f"a batch has no {LABELS!r}; its keys are {sorted(batch)}")
            with torch.enable_grad():
                outputs = predict(batch)
            labels = drawn_labels(batch[LABELS], outputs.detach, labelling)
            with torch.enable_grad():
                total = labelling["loss"](outputs, labels).sum()
            wanted = [output for collector in collectors for _, output in collector.calls]
            gradients = iter(torch.autograd.grad(total, wanted, allow_unused=True))
            for collector in collectors:
                collector.collect([next(gradients) for _ in collector.calls], len(outputs))
                collector.calls = []
            count += len(outputs)
    finally:
        for handle in handles:
            handle.remove()
    if not count:
        raise ValueError("no examples to estimate the curvature from; batches is empty")
    factors: Factors = {}
    diagonals: dict[str, Tensor] = {}
    for collector in collectors:
        if collector.g is not None and collector.a is not None:
            a = collector.a / collector.positions
            factors[collector.weight] = (a, collector.g / count)
        for name, square in collector.squares.items():
            diagonals[name] = square / count
    return factors, diagonals


def _check_unshared(collectors: list[_Collector]) -> None:
    first: dict[int, str] = {}
    for collector in collectors:
        weight = collector.module.weight
        if weight is None or not weight.requires_grad:  # a norm may have none
            continue
        assert isinstance(weight, Tensor)
        other = first.setdefault(id(weight), collector.weight)
        if other != collector.weight:
            raise ValueError(
                f"{other!r} and {collector.weight!r} are one tied weight, whose curvature is no "
                f"pair of Kronecker factors; expected layers with weights of their own: take the "
                f"family 'diagonal', or keep this weight frozen"
            )


class _Collector:
    """Inputs and outputs of one module within a pass, and its sums over all passes."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.module = module
        self.prefix = f"{name}." if name else ""
        self.weight = f"{self.prefix}weight"
        self.calls: list[tuple[Tensor, Tensor]] = []
        self.a: Tensor | None = None
        self.g: Tensor | None = None
        self.positions = 0
        self.squares: dict[str, Tensor] = {}

    def hook(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if output.requires_grad:
            self.calls.append((inputs[0].detach(), output))

    def collect(self, gradients: list[Tensor | None], examples: int) -> None:
        """Add the calls of a pass; a gradient has the shape of the call's output."""
        bias: Tensor | None = None
        for (given, _), gradient in zip(self.calls, gradients):
            if gradient is None or len(given) % examples:
                continue
            inputs, outputs = self.rows(given, gradient.detach(), examples)
            self.add(inputs, outputs, examples)
            summed = outputs.sum(1)
            bias = summed if bias is None else bias + summed
        parameter = getattr(self.module, "bias", None)
        if bias is not None and isinstance(parameter, Tensor) and parameter.requires_grad:
            self.square("bias", bias.square().sum(0))

    def rows(self, given: Tensor, gradient: Tensor, examples: int) -> tuple[Tensor, Tensor]:
        """Inputs and output gradients as (examples, positions, features), at least fp32."""
        dtype = wide(gradient)
        inputs, outputs = (x.reshape(examples, -1, x.shape[-1]) for x in (given, gradient))
        return inputs.to(dtype), outputs.to(dtype)

    def add(self, inputs: Tensor, outputs: Tensor, examples: int) -> None:
        """Add one call's part to the weight's curvature."""
        if not self.module.weight.requires_grad:
            return
        a = torch.einsum("nsi,nsj->ij", inputs, inputs)
        g = torch.einsum("nsi,nsj->ij", outputs, outputs)
        self.a = a if self.a is None else self.a + a
        self.g = g if self.g is None else self.g + g
        self.positions += inputs.shape[0] * inputs.shape[1]

    def square(self, name: str, value: Tensor) -> None:
        name = self.prefix + name
        self.squares[name] = self.squares[name] + value if name in self.squares else value


class _Convolution(_Collector):
    def rows(self, given: Tensor, gradient: Tensor, examples: int) -> tuple[Tensor, Tensor]:
        conv = self.module
        assert isinstance(conv, nn.Conv2d)
        dtype = wide(gradient)
        padding = conv._reversed_padding_repeated_twice
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        patches = functional.unfold(
            functional.pad(given.to(dtype), padding, mode=mode),
            conv.kernel_size,
            dilation=conv.dilation,
            stride=conv.stride,
        )
        return patches.mT, gradient.to(dtype).flatten(2).mT


class _LayerNorm(_Collector):
    def add(self, inputs: Tensor, outputs: Tensor, examples: int) -> None:
        norm = self.module
        assert isinstance(norm, nn.LayerNorm)
        if norm.weight.requires_grad:
            normal = functional.layer_norm(inputs, inputs.shape[-1:], eps=norm.eps)
            self.square("weight", (normal * outputs).sum(1).square().sum(0))


class _Embedding(_Collector):
    def rows(self, given: Tensor, gradient: Tensor, examples: int) -> tuple[Tensor, Tensor]:
        return given.reshape(-1), gradient.reshape(-1, gradient.shape[-1]).to(wide(gradient))

    def collect(self, gradients: list[Tensor | None], examples: int) -> None:
        table = self.module.weight
        assert isinstance(table, Tensor)
        ids, values, owners = [], [], []
        for (given, _), gradient in zip(self.calls, gradients):
            # What was looked up once for all examples has no gradient of its own for each.
            if gradient is None or given.ndim < 2 or len(given) != examples:
                continue
            tokens, rows = self.rows(given, gradient.detach(), examples)
            ids.append(tokens)
            values.append(rows)
            each = torch.arange(examples, device=tokens.device)
            owners.append(each.repeat_interleave(len(tokens) // examples))
        if not ids or not table.requires_grad:
            return
        # One row for each pair of an example and a token in it, summed before it is squared.
        keys = torch.cat(owners) * len(table) + torch.cat(ids)
        pairs, places = torch.unique(keys, return_inverse=True)
        rows = torch.cat(values)
        summed = rows.new_zeros(len(pairs), rows.shape[1]).index_add_(0, places, rows)
        total = rows.new_zeros(table.shape)
        self.square("weight", total.index_add_(0, pairs % len(table), summed.square()))


def _collector(name: str, module: nn.Module) -> _Collector | None:
    if isinstance(module, nn.Linear):
        return _Collector(name, module)
    if isinstance(module, nn.Conv2d) and module.groups == 1:
        return _Convolution(name, module)
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        return _LayerNorm(name, module)
    if isinstance(module, nn.Embedding):
        return _Embedding(name, module)
    return None
