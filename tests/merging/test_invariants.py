"""One set of invariants over every family, with shapes, dtypes and weights by Hypothesis.

The reference for all of them is one dense precision matrix a task, written out and solved in fp64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from optuna_merge.merging import merge, merge_into, merge_many
from optuna_merge.posteriors import (
    DiagonalGaussian,
    FullGaussian,
    IsotropicGaussian,
    KroneckerGaussian,
    LowRankGaussian,
    Mixture,
    Posterior,
)
from optuna_merge.posteriors._mixture import Gaussian

DELTA = 0.7
FAMILIES = ["isotropic", "per tensor", "diagonal", "low rank", "regmean", "kfac", "full"]
MIXTURES = [f"mixture {kind}" for kind in ("task", "layer", "coordinate", "fixed")]
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Maker:
    """Random posteriors over the same tensors; their precisions include DELTA once."""

    shapes: dict[str, tuple[int, ...]]
    dtype: torch.dtype

    def normal(self) -> Tensors:
        return {k: torch.randn(s).to(self.dtype) for k, s in self.shapes.items()}

    def positive(self) -> Tensors:
        return {k: (torch.rand(s) + DELTA).to(self.dtype) for k, s in self.shapes.items()}

    def square(self, size: int) -> Tensor:
        root = torch.randn(size, size).to(self.dtype)
        return root @ root.T / size

    def posterior(self, family: str, mean: Tensors | None = None) -> Gaussian:
        mean = self.normal() if mean is None else mean
        if family == "isotropic":
            return IsotropicGaussian(mean, DELTA + 0.3)
        if family == "per tensor":
            return IsotropicGaussian(mean, {k: DELTA + float(torch.rand(())) for k in mean})
        if family == "diagonal":
            return DiagonalGaussian(mean, self.positive())
        if family == "low rank":
            return LowRankGaussian(
                mean,
                self.positive(),
                {k: torch.randn(*s, 2).to(self.dtype) for k, s in self.shapes.items()},
            )
        if family == "full":
            size = sum(tensor.numel() for tensor in mean.values())
            eye = torch.eye(size, dtype=self.dtype)
            return FullGaussian(mean, self.square(size) + DELTA * eye)
        factors = {}
        for name, tensor in mean.items():
            if tensor.ndim == 2:
                rows, columns = tensor.shape
                factors[name] = (
                    self.square(columns),
                    self.square(rows) if family == "kfac" else None,
                )
        rest = {k: p for k, p in self.positive().items() if k not in factors and k != "free"}
        return KroneckerGaussian(mean, factors, rest, DELTA)


def dense(posterior: Gaussian) -> Tensor:
    """The precision as a matrix in fp64."""
    size = sum(tensor.numel() for tensor in posterior.mean.values())
    matrix = torch.zeros(size, size, dtype=torch.float64)
    if isinstance(posterior, FullGaussian):
        return posterior.precision.double()
    start = 0
    for name, tensor in posterior.mean.items():
        stop = start + tensor.numel()
        block = matrix[start:stop, start:stop]
        eye = torch.eye(stop - start, dtype=torch.float64)
        if isinstance(posterior, IsotropicGaussian):
            block += posterior.scalar(name) * eye
        elif isinstance(posterior, DiagonalGaussian):
            block += posterior.precision[name].double().flatten().diag()
        elif isinstance(posterior, LowRankGaussian):
            block += posterior.diagonal[name].double().flatten().diag()
        elif name in posterior.factors:
            a, g = posterior.factors[name]
            g = torch.eye(tensor.shape[0]) if g is None else g
            assert a is not None
            block += torch.kron(g.double(), a.double()) + posterior.damping * eye
        elif name in posterior.precision:
            block += posterior.precision[name].double().flatten().diag()
        else:
            block += posterior.damping * eye
        start = stop
    if isinstance(posterior, LowRankGaussian):
        assert isinstance(posterior.factors, dict)
        u = torch.cat([f.double().reshape(-1, f.shape[-1]) for f in posterior.factors.values()])
        matrix += u @ u.T
    return matrix


def vector(tensors: Tensors) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in tensors.values()])


def assert_close(merged: Tensors, expected: Tensors | Tensor, dtype: torch.dtype) -> None:
    expected = expected if isinstance(expected, Tensor) else vector(expected)
    assert all(tensor.dtype == dtype for tensor in merged.values())
    error = (vector(merged) - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCE[dtype], f"relative error {error:.2e}"


def scaled(posterior: Gaussian, c: float) -> Gaussian:
    """The same mean, the precision times c."""
    match posterior:
        case IsotropicGaussian(mean, precision):
            assert not isinstance(precision, Tensor)
            if isinstance(precision, dict):
                return IsotropicGaussian(mean, {k: c * v for k, v in precision.items()})
            return IsotropicGaussian(mean, c * precision)
        case DiagonalGaussian(mean, precision):
            return DiagonalGaussian(mean, {k: c * v for k, v in precision.items()})
        case LowRankGaussian(mean, diagonal, factors):
            assert isinstance(factors, dict)
            return LowRankGaussian(
                mean,
                {k: c * v for k, v in diagonal.items()},
                {k: math.sqrt(c) * v for k, v in factors.items()},
            )
        case KroneckerGaussian(mean, factors, precision, damping):
            return KroneckerGaussian(
                mean,
                {k: (None if a is None else c * a, g) for k, (a, g) in factors.items()},
                {k: c * v for k, v in precision.items()},
                c * damping,
            )
        case FullGaussian(mean, precision):
            return FullGaussian(mean, c * precision)
    raise AssertionError(posterior)


shapes = st.fixed_dictionaries(
    {
        "layer.w": st.tuples(st.integers(1, 4), st.integers(1, 4)),
        "layer.b": st.tuples(st.integers(1, 4)),
        "free": st.just(()),
    }
)
makers = st.builds(Maker, shapes, st.sampled_from([torch.float32, torch.float64]))
simplex = st.lists(st.floats(0, 1), min_size=2, max_size=4).filter(lambda w: sum(w) > 0.1)
seeds = st.integers(0, 1000)


def normalised(weights: list[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15, deadline=None)
@given(maker=makers, weights=simplex, seed=seeds, total=st.sampled_from([None, 0.0, 0.5, 2.5]))
def test_quadratic_losses_are_exact_on_and_off_the_simplex(
    family: str, maker: Maker, weights: list[float], seed: int, total: float | None
) -> None:
    torch.manual_seed(seed)
    tasks = [maker.posterior(family) for _ in weights]
    prior = IsotropicGaussian(maker.normal(), DELTA)
    weights = [(1 if total is None else total) * weight for weight in normalised(weights)]
    merged = merge(tasks, weights, prior=None if total is None else prior)
    # The gradient of sum_t a_t l_t + R_0, with l_t = -log q_t + log p_0, is zero at its minimum.
    terms = [(a, dense(task), vector(task.mean)) for a, task in zip(weights, tasks)]
    terms.append((1 - sum(weights), dense(prior), vector(prior.mean)))
    precision = sum(a * s for a, s, _ in terms)
    moment = sum(a * s @ m for a, s, m in terms)
    assert isinstance(precision, Tensor)
    assert isinstance(moment, Tensor)
    assert_close(merged, torch.linalg.solve(precision, moment), maker.dtype)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=10, deadline=None)
@given(maker=makers, weights=simplex, seed=seeds)
def test_invariants(family: str, maker: Maker, weights: list[float], seed: int) -> None:
    torch.manual_seed(seed)
    weights = normalised(weights)
    tasks: list[Posterior] = [maker.posterior(family) for _ in weights]
    merged = merge(tasks, weights)

    for t, task in enumerate(tasks):
        vertex = merge(tasks, [float(t == k) for k in range(len(tasks))])
        assert all(torch.equal(vertex[name], task.mean[name]) for name in task.mean)

    equal = [replace(tasks[0], mean=task.mean) for task in tasks]
    average = {
        name: sum(a * task.mean[name].double() for a, task in zip(weights, tasks))
        for name in maker.shapes
    }
    assert_close(merge(equal, weights), average, maker.dtype)  # type: ignore[arg-type]

    stretched = merge([scaled(task, 4.0) for task in tasks], weights)  # type: ignore[arg-type]
    assert_close(stretched, merged, maker.dtype)

    backwards = merge(tasks[::-1], weights[::-1])
    assert_close(backwards, merged, maker.dtype)

    nan = {name: torch.full_like(tensor, math.nan) for name, tensor in tasks[0].mean.items()}
    broken = maker.posterior(family, nan)
    with_nan = merge([*tasks, broken], [*weights, 0.0])
    assert all(torch.equal(with_nan[name], merged[name]) for name in merged)

    together = merge_many(tasks, [weights, weights[::-1]])
    assert all(torch.equal(together[0][name], merged[name]) for name in merged)

    module = torch.nn.ParameterDict({k.replace(".", "_"): v.clone() for k, v in nan.items()})
    merge_into(module, tasks, weights, names={k: k.replace(".", "_") for k in nan})
    assert all(torch.equal(module[k.replace(".", "_")], v) for k, v in merged.items())

    for kind in MIXTURES:
        if kind == "mixture layer" and family in ("low rank", "full"):
            continue
        if kind == "mixture coordinate" and family not in ("isotropic", "per tensor", "diagonal"):
            continue
        mixtures: list[Posterior] = [
            Mixture([task] * 3, torch.tensor([0.2, 0.3, 0.5]).log(), kind.split()[1])  # type: ignore[arg-type, list-item]
            for task in tasks
        ]
        assert_close(merge(mixtures, weights), merged, maker.dtype)


@pytest.mark.parametrize("family", ["diagonal", "low rank", "regmean", "kfac", "full"])
def test_from_fisher_merging_to_task_arithmetic(family: str) -> None:
    """Damping from almost nothing to very much, added to what are the data parts here."""
    torch.manual_seed(0)
    maker = Maker({"w": (3, 4), "b": (3,)}, torch.float64)
    tasks = [maker.posterior(family) for _ in range(3)]
    origin = maker.normal()
    weights = [0.5, 0.9, 0.2]

    def damped(delta: float) -> Tensors:
        posteriors: list[Posterior] = [
            FullGaussian(task.mean, dense(task) + delta * torch.eye(15, dtype=torch.float64))
            for task in tasks
        ]
        return merge(posteriors, weights, prior=IsotropicGaussian(origin, delta))

    matrices = [dense(task) for task in tasks]
    fisher = torch.linalg.solve(
        sum(a * h for a, h in zip(weights, matrices)),  # type: ignore[arg-type]
        sum(a * h @ vector(task.mean) for a, h, task in zip(weights, matrices, tasks)),  # type: ignore[arg-type]
    )
    arithmetic = vector(origin) + sum(
        a * (vector(task.mean) - vector(origin)) for a, task in zip(weights, tasks)
    )
    torch.testing.assert_close(vector(damped(1e-9)), fisher, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(vector(damped(1e9)), arithmetic, rtol=1e-6, atol=1e-6)


def test_low_rank_factors_may_be_one_matrix() -> None:
    torch.manual_seed(0)
    maker = Maker({"w": (3, 4), "b": (3,)}, torch.float64)
    by_name = [maker.posterior("low rank") for _ in range(2)]
    matrices = [
        LowRankGaussian(
            p.mean, p.diagonal, torch.cat([f.reshape(-1, 2) for f in p.factors.values()])
        )  # type: ignore[union-attr]
        for p in by_name
    ]
    assert_close(merge(matrices, [0.3, 0.7]), merge(by_name, [0.3, 0.7]), torch.float64)


def test_tasks_may_name_their_tensors_in_another_order() -> None:
    torch.manual_seed(0)
    maker = Maker({"w": (2, 3), "b": (2,)}, torch.float64)
    a, b = (maker.posterior("full") for _ in range(2))
    assert isinstance(b, FullGaussian)
    order = torch.tensor([6, 7, 0, 1, 2, 3, 4, 5])
    turned = FullGaussian({"b": b.mean["b"], "w": b.mean["w"]}, b.precision[order][:, order])
    assert_close(merge([a, turned], [0.3, 0.7]), merge([a, b], [0.3, 0.7]), torch.float64)


def test_convolution_weights_are_matrices_to_their_factors() -> None:
    torch.manual_seed(0)
    maker = Maker({"w": (3, 4)}, torch.float64)
    flat = [maker.posterior("kfac") for _ in range(2)]
    conv = [
        KroneckerGaussian({"w": p.mean["w"].view(3, 2, 1, 2)}, p.factors, {}, DELTA)  # type: ignore[union-attr]
        for p in flat
    ]
    merged = merge(conv, [0.3, 0.7])["w"]
    assert merged.shape == (3, 2, 1, 2)
    assert_close({"w": merged}, merge(flat, [0.3, 0.7]), torch.float64)


@pytest.mark.parametrize("family", ["low rank", "kfac", "full"])
def test_a_merged_precision_that_is_not_positive_is_refused(family: str) -> None:
    maker = Maker({"w": (2, 2)}, torch.float64)
    mean = maker.normal()
    zero = torch.zeros(2, 2, dtype=torch.float64)
    other = maker.normal()
    make: dict[str, Callable[[Tensors], Gaussian]] = {
        "low rank": lambda m: LowRankGaussian(m, {"w": zero}, {"w": zero[..., None]}),
        "kfac": lambda m: KroneckerGaussian(m, {"w": (zero, zero)}),
        "full": lambda m: FullGaussian(m, torch.zeros(4, 4, dtype=torch.float64)),
    }
    with pytest.raises(ValueError, match="is not positive"):
        merge([make[family](mean), make[family](other)], [0.5, 0.5])


def test_what_a_prior_goes_with() -> None:
    maker = Maker({"w": (2, 2)}, torch.float64)
    full, low_rank, diagonal = (maker.posterior(f) for f in ("full", "low rank", "diagonal"))
    merge([diagonal], [0.5], prior=full)
    with pytest.raises(
        TypeError, match="a FullGaussian as prior does not go with LowRankGaussian"
    ):
        merge([low_rank], [0.5], prior=full)
    with pytest.raises(TypeError, match="the prior is a Mixture"):
        merge([full], [0.5], prior=Mixture([full], torch.zeros(1)))
