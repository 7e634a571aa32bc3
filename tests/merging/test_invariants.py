"""One set of invariants over every family of the registry.

Posteriors are those that a family makes of a small random model's curvature, damped by `DELTA`.
The reference is one dense precision matrix a task, written out and solved in fp64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from optuna_merge.merging import merge, merge_into
from optuna_merge.merging._mixture import log_density, restrict
from optuna_merge.posteriors import (
    FAMILIES,
    DiagonalGaussian,
    Evidence,
    FullGaussian,
    Gaussian,
    IsotropicGaussian,
    KroneckerGaussian,
    LowRankGaussian,
    Mixture,
    Posterior,
    RowsColumnsGaussian,
    load_posterior,
    posterior_bytes,
    posterior_to,
    save_posterior,
)
from optuna_merge.posteriors._gaussian import Coupled
from optuna_merge.posteriors._mixture import RESPONSIBILITIES

DELTA = 0.7
EXAMPLES = 5
NAMES = [*FAMILIES, "regmean"]
COUPLED = [name for name, each in FAMILIES.items() if issubclass(each.gaussian, Coupled)]
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}

Tensors = dict[str, Tensor]


class Toy(nn.Module):
    """A linear layer, a convolution, and a parameter of no dimensions that no layer has."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)
        self.conv = nn.Conv2d(1, 2, (1, 2), padding=(0, 1))
        self.free = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(x) * self.free
        return self.conv(hidden[:, None, None]).flatten(1)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Maker:
    """Random posteriors over the same tensors; their precisions include `delta`."""

    inputs: int
    outputs: int
    dtype: torch.dtype
    delta: float = DELTA
    loss_scale: float = 0.1

    def model(self) -> nn.Module:
        return Toy(self.inputs, self.outputs).to(self.dtype).eval()

    def normal(self) -> Tensors:
        return {name: torch.randn_like(p) for name, p in self.model().named_parameters()}

    def posterior(self, name: str) -> Gaussian:
        return self.undamped(name).damped(self.delta)

    def undamped(self, name: str) -> Gaussian:
        """What a family makes of random data at random parameters."""
        mean, model = self.normal(), self.model()
        batch = {"x": torch.randn(EXAMPLES, self.inputs, dtype=self.dtype)}
        batch["labels"] = torch.randn_like(functional_call(model, mean, (batch["x"],)))
        if name == "regmean":
            x = batch["x"]
            return KroneckerGaussian(mean, {"layer.weight": (x.T @ x / EXAMPLES, None)})
        family = FAMILIES[name]
        if family.curvature is None:
            return family.made(mean)
        model.load_state_dict(mean)

        def predict(params: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
            return functional_call(model, dict(params), (batch["x"],))  # type: ignore[no-any-return]

        def loss(outputs: Tensor, labels: Tensor) -> Tensor:
            return self.loss_scale * 0.5 * (outputs - labels).square().sum(1)

        evidence = Evidence(
            mean, mean, [batch], predict, model, lambda b: model(b["x"]), 3, {"loss": loss}
        )
        reads = {"rank": 2}
        return family.made(
            family.curvature.estimate(evidence, **{n: reads[n] for n in family.curvature.reads})
        )


def dense(posterior: Gaussian) -> Tensor:
    """The precision as a matrix in fp64, written out."""
    blocks = {
        name: torch.zeros(tensor.numel(), tensor.numel(), dtype=torch.float64)
        for name, tensor in posterior.mean.items()
    }

    def add(name: str, values: Tensor | float) -> None:
        blocks[name].diagonal().add_(torch.as_tensor(values, dtype=torch.float64).flatten())

    for name, tensor in posterior.mean.items():
        match posterior:
            case IsotropicGaussian(precision=precision):
                add(name, precision[name] if isinstance(precision, dict) else precision)
            case DiagonalGaussian(precision=precision):
                add(name, precision[name])
            case LowRankGaussian(diagonal=diagonal):
                add(name, diagonal[name])
            case RowsColumnsGaussian(precision=precision, damping=damping):
                add(name, damping)
                if name in precision:
                    add(name, precision[name])
                else:
                    r, c = (each[name].double() for each in (posterior.rows, posterior.columns))
                    add(name, r[:, None] * c[None] / r.mean())
            case KroneckerGaussian(factors=factors, precision=precision, damping=damping):
                add(name, precision.get(name, damping))
                if name in factors:
                    a, g = factors[name]
                    g = torch.eye(tensor.shape[0]) if g is None else g
                    assert a is not None
                    blocks[name] += torch.kron(g.double(), a.double())
            case FullGaussian(precision=precision):
                return precision.double()
            case _:
                raise AssertionError(f"write out the precision of a {type(posterior).__name__}")
    matrix = torch.block_diag(*blocks.values())
    if isinstance(posterior, LowRankGaussian):
        u = torch.cat([rows.double() for rows in posterior.rows().values()])
        matrix += u @ u.T
    return matrix


def vector(tensors: Tensors) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in tensors.values()])


def assert_close(
    merged: Tensors, expected: Tensors | Tensor, dtype: torch.dtype, condition: float = 1.0
) -> None:
    """Equal but for rounding, of a solution of equations of this condition number in fp64."""
    expected = expected if isinstance(expected, Tensor) else vector(expected)
    assert all(tensor.dtype == dtype for tensor in merged.values())
    error = (vector(merged) - expected).abs().max() / expected.abs().max()
    bound = max(TOLERANCE[dtype], 4 * torch.finfo(torch.float64).eps * condition)
    assert error < bound, f"relative error {error:.2e}, expected less than {bound:.2e}"


def assert_equal(one: Tensors, other: Tensors) -> None:
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


makers = st.builds(
    Maker, st.integers(1, 4), st.integers(1, 4), st.sampled_from([torch.float32, torch.float64])
)
simplex = st.lists(st.floats(0, 1), min_size=2, max_size=4).filter(lambda w: sum(w) > 0.1)
seeds = st.integers(0, 1000)


def normalised(weights: list[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("family", NAMES)
@settings(max_examples=15, deadline=None)
@given(maker=makers, weights=simplex, seed=seeds)
def test_quadratic_losses_are_exact(
    family: str, maker: Maker, weights: list[float], seed: int
) -> None:
    torch.manual_seed(seed)
    tasks = [maker.posterior(family) for _ in weights]
    weights = normalised(weights)
    merged = merge(tasks, weights)
    # The gradient of sum_t a_t l_t, with l_t = -log q_t, is zero at its minimum.
    terms = [(a, dense(task), vector(task.mean)) for a, task in zip(weights, tasks)]
    precision = sum(a * s for a, s, _ in terms)
    moment = sum(a * s @ m for a, s, m in terms)
    assert isinstance(precision, Tensor)
    assert isinstance(moment, Tensor)
    condition = float(torch.linalg.cond(precision))
    assert_close(merged, torch.linalg.solve(precision, moment), maker.dtype, condition)


@pytest.mark.parametrize("family", NAMES)
@settings(max_examples=10, deadline=None)
@given(maker=makers, weights=simplex, seed=seeds)
def test_invariants(family: str, maker: Maker, weights: list[float], seed: int) -> None:
    torch.manual_seed(seed)
    weights = normalised(weights)
    tasks = [maker.posterior(family) for _ in weights]
    merged = merge(tasks, weights)
    precision = torch.stack([a * dense(task) for a, task in zip(weights, tasks)]).sum(0)
    condition = float(torch.linalg.cond(precision))

    for t, task in enumerate(tasks):
        vertex = merge(tasks, [float(t == k) for k in range(len(tasks))])
        assert_equal(vertex, task.mean)

    equal = [replace(tasks[0], mean=task.mean) for task in tasks]
    average = sum(a * vector(task.mean) for a, task in zip(weights, tasks))
    assert isinstance(average, Tensor)
    alike = float(torch.linalg.cond(dense(tasks[0])))
    assert_close(merge(equal, weights), average, maker.dtype, alike)

    backwards = merge(tasks[::-1], weights[::-1])
    assert_close(backwards, merged, maker.dtype, condition)

    nan = {name: torch.full_like(tensor, math.nan) for name, tensor in tasks[0].mean.items()}
    broken = replace(tasks[0], mean=nan)
    assert_equal(merge([*tasks, broken], [*weights, 0.0]), merged)

    module = torch.nn.ParameterDict({k.replace(".", "_"): v.clone() for k, v in nan.items()})
    merge_into(module, tasks, weights, names={k: k.replace(".", "_") for k in nan})
    assert all(torch.equal(module[k.replace(".", "_")], v) for k, v in merged.items())

    for kind, couplings in RESPONSIBILITIES.items():
        if tasks[0].coupling in couplings:
            mixtures: list[Posterior] = [
                Mixture([task] * 3, torch.tensor([0.2, 0.3, 0.5]).log(), kind)  # type: ignore[arg-type]
                for task in tasks
            ]
            assert_close(merge(mixtures, weights), merged, maker.dtype, condition)

    if tasks[0].coupling != "whole":
        layer = ["layer.weight", "layer.bias"]
        alone = merge([restrict(task, layer) for task in tasks], weights)
        assert_close(alone, {name: merged[name] for name in layer}, maker.dtype, condition)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_dampings_of_another_unit_give_the_same_merges(family: str) -> None:
    merges = []
    for maker in (Maker(4, 3, torch.float64), Maker(4, 3, torch.float64, 16 * DELTA, 0.4)):
        torch.manual_seed(0)
        merges.append(merge([maker.posterior(family) for _ in range(3)], [0.2, 0.5, 0.3]))
    assert_close(merges[0], merges[1], torch.float64)


@pytest.mark.parametrize("family", NAMES)
def test_damping_adds_to_the_precision_and_much_of_it_is_averaging(family: str) -> None:
    torch.manual_seed(0)
    maker = Maker(3, 2, torch.float64)
    tasks = [maker.undamped(family) for _ in range(3)]
    before, after = dense(tasks[0]), dense(tasks[0].damped(0.3))
    excess = after - before - 0.3 * torch.eye(len(before), dtype=torch.float64)
    if family == "kronecker":  # its factors are damped, too
        assert torch.linalg.eigvalsh(excess).min() > -1e-12
    else:
        torch.testing.assert_close(excess, torch.zeros_like(excess), rtol=0, atol=1e-12)
    assert tasks[0].damped(0.3).mean is tasks[0].mean
    for posterior in (tasks[0], tasks[0].damped(0.3)):
        expected = float(dense(posterior).diagonal().mean())
        assert posterior.mean_curvature() == pytest.approx(expected, rel=1e-12)
    weights = [0.5, 0.3, 0.2]
    average = sum(a * vector(task.mean) for a, task in zip(weights, tasks))
    much = 1e18 if family == "kronecker" else 1e9  # its factors tend to the identity as 1 / sqrt
    merged = merge([task.damped(much) for task in tasks], weights)
    torch.testing.assert_close(vector(merged), average, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", NAMES)
def test_log_densities_are_those_of_torch(family: str) -> None:
    torch.manual_seed(0)
    maker = Maker(3, 2, torch.float64)
    term, x = maker.posterior(family), maker.normal()
    exact = torch.distributions.MultivariateNormal(vector(term.mean), precision_matrix=dense(term))
    constant = len(vector(x)) / 2 * math.log(2 * math.pi)
    expected = exact.log_prob(vector(x)).item() + constant
    assert log_density(term, x) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("family", NAMES)
def test_files_and_devices(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    maker = Maker(3, 2, torch.float32)
    task = maker.posterior(family)
    mixture = Mixture((task, maker.posterior(family)), torch.zeros(2), "fixed")
    for posterior in (task, mixture):
        content_hash = save_posterior(posterior, tmp_path / "p")
        loaded = load_posterior(tmp_path / "p")
        assert same(posterior, loaded)
        assert save_posterior(loaded, tmp_path / "again") == content_hash
        there = posterior_to(posterior, "meta")
        devices = {
            part.value.device.type
            for part in there.parts()
            if isinstance(part.value, Tensor) and part.value.ndim
        }
        assert devices == {"meta"}
        stored = [part.value for part in posterior.parts() if isinstance(part.value, Tensor)]
        assert posterior_bytes(posterior) == sum(tensor.nbytes for tensor in stored)


def same(a: object, b: object) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple):
        return isinstance(b, tuple) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if is_dataclass(a):
        names = [field.name for field in fields(a)]
        return type(a) is type(b) and all(same(getattr(a, n), getattr(b, n)) for n in names)
    return a == b


@pytest.mark.parametrize("family", FAMILIES)
def test_from_fisher_merging_to_task_arithmetic(family: str) -> None:
    """Damping from almost nothing to very much, added to what are the data parts here."""
    torch.manual_seed(0)
    maker = Maker(3, 2, torch.float64)
    tasks = [maker.posterior(family) for _ in range(3)]
    origin = maker.normal()
    weights = [0.3, 0.4, 0.2]

    def damped(delta: float) -> Tensors:
        posteriors = [FullGaussian(task.mean, dense(task)).damped(delta) for task in tasks]
        nothing = torch.zeros_like(posteriors[0].precision)
        prior = FullGaussian(origin, nothing).damped(delta)
        return merge([*posteriors, prior], [*weights, 1 - sum(weights)])

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


def test_tasks_may_name_their_tensors_in_another_order() -> None:
    torch.manual_seed(0)
    a, b = (
        FullGaussian(
            {"w": torch.randn(2, 3).double(), "b": torch.randn(2).double()}, root @ root.T
        )
        for root in torch.randn(2, 8, 9).double()
    )
    order = torch.tensor([6, 7, 0, 1, 2, 3, 4, 5])
    turned = FullGaussian({"b": b.mean["b"], "w": b.mean["w"]}, b.precision[order][:, order])
    assert_close(merge([a, turned], [0.3, 0.7]), merge([a, b], [0.3, 0.7]), torch.float64)


@pytest.mark.parametrize("family", ["kronecker", "rows_columns"])
def test_convolution_weights_are_matrices_of_their_first_dimension(family: str) -> None:
    torch.manual_seed(0)
    maker = Maker(4, 3, torch.float64)
    flat = [restrict(maker.posterior(family), ["layer.weight"]) for _ in range(2)]
    conv = [replace(p, mean={k: m.view(3, 2, 1, 2) for k, m in p.mean.items()}) for p in flat]
    merged = merge(conv, [0.3, 0.7])
    assert merged["layer.weight"].shape == (3, 2, 1, 2)
    assert_close(merged, merge(flat, [0.3, 0.7]), torch.float64)


@pytest.mark.parametrize("family", COUPLED)
def test_a_merged_precision_that_is_not_positive_is_refused(family: str) -> None:
    zero = torch.zeros(2, 2, dtype=torch.float64)
    make: dict[str, Callable[[Tensors], Gaussian]] = {
        "low_rank": lambda m: LowRankGaussian(m, {"w": zero}, {"w": zero[..., None]}),
        "kronecker": lambda m: KroneckerGaussian(m, {"w": (zero, zero)}),
        "full": lambda m: FullGaussian(m, torch.zeros(4, 4, dtype=torch.float64)),
    }
    tasks = [make[family]({"w": torch.randn(2, 2).double()}) for _ in range(2)]
    with pytest.raises(ValueError, match="is not positive"):
        merge(tasks, [0.5, 0.5])
