from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from optuna_merge.merging import merge
from optuna_merge.merging._mixture import EM, log_ratio
from optuna_merge.posteriors import (
    DiagonalGaussian,
    FullGaussian,
    Gaussian,
    KroneckerGaussian,
    LowRankGaussian,
    Mixture,
)

SHAPES = {"a.w": (2, 3), "a.b": (2,), "c": (4,)}


def normal(scale: float = 1.0) -> dict[str, Tensor]:
    return {k: scale * torch.randn(s, dtype=torch.float64) for k, s in SHAPES.items()}


def diagonal(scale: float = 1.0) -> DiagonalGaussian:
    precision = {k: torch.rand(s, dtype=torch.float64) + 0.2 for k, s in SHAPES.items()}
    return DiagonalGaussian(normal(scale), precision)


def vector(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in tensors.values()])


def mixture_objective(
    x: Tensor, tasks: list[Mixture], weights: list[float], blocks: list[slice]
) -> Tensor:
    """J, written out: each task is a product over blocks of mixtures of diagonal Gaussians."""
    total = torch.zeros((), dtype=torch.float64)
    for a, task in zip(weights, tasks):
        for block in blocks:
            logs = []
            for k, component in enumerate(task.components):
                assert isinstance(component, DiagonalGaussian)
                s, m = vector(component.precision)[block], vector(component.mean)[block]
                density = 0.5 * (s.log() - s * (x[block] - m) ** 2).sum()
                logs.append(task.log_weights.double().log_softmax(0)[k] + density)
            total = total + a * torch.stack(logs).logsumexp(0)
    return total


BLOCKS = {
    "task": [slice(0, 12)],
    "layer": [slice(0, 8), slice(8, 12)],
    "coordinate": [slice(i, i + 1) for i in range(12)],
}


@pytest.mark.parametrize("kind", list(BLOCKS))
def test_em_ends_at_a_stationary_point_above_its_start(kind: str) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        tasks = [
            Mixture([diagonal(0.7) for _ in range(3)], torch.randn(3), kind)  # type: ignore[arg-type]
            for _ in range(2)
        ]
        weights = [0.3, 0.7]
        fixed = [Mixture(task.components, task.log_weights, "fixed") for task in tasks]
        start = vector(merge(fixed, weights))
        end = vector(merge(tasks, weights)).requires_grad_()

        def objective(x: Tensor) -> Tensor:
            return mixture_objective(x, tasks, weights, BLOCKS[kind])  # noqa: B023

        assert objective(end) >= objective(start)
        (gradient,) = torch.autograd.grad(objective(end), end)
        assert gradient.abs().max() < 1e-4


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    spread=st.floats(0.01, 10),
    weights=st.lists(st.floats(0.01, 2), min_size=1, max_size=3),
    family=st.sampled_from(["diagonal", "low rank", "kfac", "full"]),
)
def test_the_objective_never_falls(
    seed: int, spread: float, weights: list[float], family: str
) -> None:
    torch.manual_seed(seed)

    def component() -> Gaussian:
        base = diagonal(spread)
        if family == "low rank":
            factors = {k: torch.randn(*s, 2).double() for k, s in SHAPES.items()}
            return LowRankGaussian(base.mean, base.precision, factors)
        if family == "kfac":
            a, g = torch.randn(3, 5).double(), torch.randn(2, 4).double()
            rest = {k: v for k, v in base.precision.items() if k != "a.w"}
            return KroneckerGaussian(base.mean, {"a.w": (a @ a.T, g @ g.T)}, rest, 0.3)
        if family == "full":
            root = torch.randn(12, 12).double()
            return FullGaussian(base.mean, root @ root.T + torch.eye(12).double())
        return base

    em = EM(
        [
            (a, [component() for _ in range(3)], torch.randn(3).double().log_softmax(0))
            for a in weights
        ]
    )
    responsibilities = [log_pi.exp() for _, _, log_pi in em.tasks]
    values = []
    for _ in range(20):
        value, responsibilities = em.expect(em.maximise(responsibilities))
        values.append(value)
    assert all(b >= a - 1e-9 * (1 + abs(a)) for a, b in pairwise(values))


def test_log_responsibilities_of_ten_million_parameters_are_those_of_fp64() -> None:
    rng = np.random.default_rng(0)
    size = 10_000_000
    means = [rng.standard_normal(size, dtype=np.float32) for _ in range(2)]
    precisions = [rng.random(size, dtype=np.float32) + 0.5 for _ in range(2)]
    x = means[0] + 0.1 * means[1]
    first, second = (
        DiagonalGaussian({"x": torch.from_numpy(m)}, {"x": torch.from_numpy(s)})
        for m, s in zip(means, precisions)
    )
    wide = [array.astype(np.longdouble) for array in (*means, *precisions, x)]
    m0, m1, s0, s1, point = wide
    exact = (np.log(s1) - np.log(s0) - s1 * (point - m1) ** 2 + s0 * (point - m0) ** 2).sum() / 2
    ratio = log_ratio(second, first, {"x": torch.from_numpy(x)})
    assert abs(ratio - float(exact)) < 1e-6

    # What it is for: summed one after the other in fp32, the same number is wrong by many nats.
    terms = 0.5 * (
        np.log(precisions[1])
        - np.log(precisions[0])
        - precisions[1] * (x - means[1]) ** 2
        + precisions[0] * (x - means[0]) ** 2
    )
    assert abs(float(np.cumsum(terms, dtype=np.float32)[-1]) - float(exact)) > 1


def test_far_components_are_chosen_one_by_one_per_coordinate() -> None:
    near = DiagonalGaussian({"x": torch.tensor([0.0, 10.0])}, {"x": torch.ones(2)})
    far = DiagonalGaussian({"x": torch.tensor([10.0, 0.0])}, {"x": torch.ones(2)})
    zero = DiagonalGaussian({"x": torch.zeros(2)}, {"x": torch.ones(2)})
    weights = torch.tensor([0.9, 0.1]).log()
    tasks = [Mixture([near, far], weights, "coordinate")]
    tasks.append(Mixture([zero], torch.zeros(1), "coordinate"))
    merged = merge(tasks, [0.8, 0.2])["x"]
    # Each coordinate starts, from r = pi, nearer to what the first component has there.
    torch.testing.assert_close(merged, torch.tensor([0.0, 8.0]), atol=1e-2, rtol=0)
    fixed = merge([replace(task, responsibilities="fixed") for task in tasks], [0.8, 0.2])["x"]
    torch.testing.assert_close(fixed, torch.tensor([0.8, 7.2]))


def test_bad_mixtures() -> None:
    torch.manual_seed(0)
    a, b = diagonal(), diagonal()
    full = FullGaussian(a.mean, torch.eye(12).double())
    pair = torch.zeros(2)
    zero = DiagonalGaussian(a.mean, {**b.precision, "c": torch.zeros(4).double()})
    nan = DiagonalGaussian({**a.mean, "c": torch.full((4,), math.nan).double()}, a.precision)
    with pytest.raises(ValueError, match=r"task 0: log_weights has shape \(3,\), expected \(2,\)"):
        merge([Mixture([a, b], torch.zeros(3))], [1.0])
    with pytest.raises(ValueError, match="task 'news': component 1's mean 'c' holds NaN"):
        merge({"news": Mixture([a, nan], pair)}, [1.0])
    with pytest.raises(ValueError, match="precisions must be positive"):
        merge([Mixture([a, zero], pair)], [1.0])
    with pytest.raises(ValueError, match="'layer' need coordinates that are independent"):
        merge([Mixture([full, full], pair, "layer")], [1.0])
    with pytest.raises(ValueError, match="responsibilities='tensor'; expected one of task"):
        merge([Mixture([a, b], pair, "tensor")], [1.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one component"):
        merge([Mixture([], torch.zeros(0))], [1.0])
    with pytest.raises(TypeError, match="component 0 must be a Gaussian"):
        merge([Mixture([Mixture([a, b], pair)] * 2, pair)], [1.0])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="must be of one family"):
        merge([Mixture([a, b], pair), Mixture([full, full], pair)], [0.5, 0.5])
    with pytest.raises(TypeError, match="must be of one family"):
        merge([Mixture([a, b], pair), Mixture([a, b], pair, "fixed")], [0.5, 0.5])
    with pytest.raises(ValueError, match="task 0, component 1: mean lacks the tensor 'c'"):
        part = DiagonalGaussian(
            *({k: v for k, v in d.items() if k != "c"} for d in (b.mean, b.precision))
        )
        merge([Mixture([a, part], pair)], [1.0])
