"""The compiled kernels against the tensor operations that they stand in for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from optuna_merge.merging import _fused as fused, merge, merge_into
from optuna_merge.posteriors import DiagonalGaussian, IsotropicGaussian, Posterior

pytest.importorskip("numba")

Tensors = dict[str, Tensor]

SHAPES = {"long": (3, 70_001), "block": (512,), "one": (), "none": (0, 4), "odd": (7, 11)}
PRECISION = {torch.float32: 3e-7, torch.bfloat16: 1e-2}


@contextmanager
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(fused, "kernels", lambda: None)
        yield


def tensors(dtype: torch.dtype, *, positive: bool = False) -> Tensors:
    if positive:
        return {k: (torch.rand(s) + 0.1).to(dtype) for k, s in SHAPES.items()}
    return {k: torch.randn(s).to(dtype) for k, s in SHAPES.items()}


def posteriors(family: str, count: int, dtype: torch.dtype) -> list[Posterior]:
    if family == "isotropic":
        return [IsotropicGaussian(tensors(dtype), 0.5 + t) for t in range(count)]
    if family == "per tensor":
        return [
            IsotropicGaussian(tensors(dtype), {k: float(torch.rand(())) + 0.1 for k in SHAPES})
            for _ in range(count)
        ]
    return [
        DiagonalGaussian(tensors(dtype), tensors(torch.float32, positive=True))
        for _ in range(count)
    ]


def distance(one: Tensors, other: Tensors) -> float:
    return max(
        float((one[k].double() - other[k].double()).abs().max()) for k in one if one[k].numel()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [2, 3, 4, 5, 9])
@pytest.mark.parametrize("family", ["isotropic", "per tensor", "diagonal"])
def test_as_tensor_operations(
    family: str, count: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(count)
    tasks = posteriors(family, count, dtype)
    weightings = torch.rand(5, count).softmax(1)
    weightings[1] = torch.eye(count)[1]
    weightings[2, :2] = torch.tensor([0.0, float(weightings[2, :2].sum())])
    weightings /= weightings.sum(1, keepdim=True)
    for weights in weightings:
        with eager(monkeypatch):
            expected = merge(tasks, weights)
        assert distance(merge(tasks, weights), expected) < 5 * PRECISION[dtype]
    alone = merge(tasks, weightings[1])
    assert all(torch.equal(alone[k], tasks[1].mean[k]) for k in SHAPES)


def test_nearer_to_the_truth_than_tensor_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    tasks = posteriors("diagonal", 3, torch.float32)
    weights = [0.2, 0.3, 0.5]
    wide: list[Posterior] = [
        DiagonalGaussian(
            {k: m.double() for k, m in task.mean.items()},
            {k: p.double() for k, p in task.precision.items()},
        )
        for task in tasks
        if isinstance(task, DiagonalGaussian)
    ]
    exact = merge(wide, weights)
    with eager(monkeypatch):
        rounded = merge(tasks, weights)
    error = distance(merge(tasks, weights), exact)
    assert error <= distance(rounded, exact)
    assert error < 2.5e-7  # half a unit in the last place of the largest values


def test_bf16_is_rounded_to_nearest() -> None:
    torch.manual_seed(0)
    one, other = (torch.randn(100_000).bfloat16() for _ in range(2))
    merged = merge([IsotropicGaussian({"w": one}), IsotropicGaussian({"w": other})], [0.5, 0.5])
    assert torch.equal(merged["w"], ((one.double() + other.double()) / 2).bfloat16())


def test_any_number_of_threads_gives_the_same_bits() -> None:
    torch.manual_seed(0)
    tasks: list[Posterior] = [
        DiagonalGaussian({"w": torch.randn(1500, 1000)}, {"w": torch.rand(1500, 1000) + 0.1})
        for _ in range(3)
    ]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = merge(tasks, [0.2, 0.3, 0.5])["w"]
        torch.set_num_threads(3)
        assert torch.equal(merge(tasks, [0.2, 0.3, 0.5])["w"], alone)
    finally:
        torch.set_num_threads(before)


def test_precisions_far_from_one_neither_overflow_nor_vanish() -> None:
    mean = [{"w": torch.tensor([1.0, -2.0])}, {"w": torch.tensor([3.0, 5.0])}]
    for size in (1e-37, 1e37):
        precision = {"w": torch.full((2,), size)}
        tasks: list[Posterior] = [DiagonalGaussian(m, precision) for m in mean]
        merged = merge(tasks, [0.25, 0.75])["w"]
        assert torch.equal(merged, torch.tensor([2.5, 3.25]))


def test_what_is_not_contiguous_is_merged_as_well() -> None:
    torch.manual_seed(0)
    plain = [torch.randn(30, 20) for _ in range(2)]
    precision = [torch.rand(30, 20) + 0.1 for _ in range(2)]
    expected = merge(
        [DiagonalGaussian({"w": m}, {"w": p}) for m, p in zip(plain, precision)], [0.3, 0.7]
    )["w"]
    turned: list[Posterior] = [
        DiagonalGaussian({"w": m.T.contiguous().T}, {"w": p}) for m, p in zip(plain, precision)
    ]
    assert not turned[0].mean["w"].is_contiguous()
    torch.testing.assert_close(merge(turned, [0.3, 0.7])["w"], expected)


def test_a_module_may_be_overwritten_by_a_merge_of_its_own_parameters() -> None:
    torch.manual_seed(0)
    module = torch.nn.Linear(300, 200)
    own = {name: parameter.detach() for name, parameter in module.named_parameters()}
    other = {name: torch.randn_like(parameter) for name, parameter in own.items()}
    tasks: list[Posterior] = [
        DiagonalGaussian(mean, {k: torch.rand_like(m) + 0.1 for k, m in mean.items()})
        for mean in (own, other)
    ]
    expected = merge(tasks, [0.4, 0.6])
    version = module.weight._version
    merge_into(module, tasks, [0.4, 0.6])
    assert all(torch.equal(parameter, expected[k]) for k, parameter in module.named_parameters())
    assert module.weight._version > version  # whoever has checked these values looks again
