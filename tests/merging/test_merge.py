from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from optuna_merge.merging import merge
from optuna_merge.posteriors import DiagonalGaussian, IsotropicGaussian, Mixture, Posterior

SHAPES = {"w": (3, 5), "b": (5,), "scale": ()}


def tensors(make: Callable[..., Tensor] = torch.randn) -> dict[str, Tensor]:
    return {name: make(shape) for name, shape in SHAPES.items()}


def diagonal() -> DiagonalGaussian:
    return DiagonalGaussian(tensors(), {k: v + 0.1 for k, v in tensors(torch.rand).items()})


def changed(of: dict[str, Tensor], name: str, index: int, value: float) -> dict[str, Tensor]:
    tensor = of[name].clone()
    tensor.view(-1)[index] = value
    return {**of, name: tensor}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_averaging_and_task_arithmetic() -> None:
    means = [tensors() for _ in range(3)]
    origin = tensors()
    tasks = [IsotropicGaussian(mean) for mean in means]
    average = merge(tasks, [0.2, 0.3, 0.5])
    scaled = merge([*tasks, IsotropicGaussian(origin)], [0.4, -0.3, 1.5, -0.6])
    for name in SHAPES:
        expected = sum(a * mean[name] for a, mean in zip([0.2, 0.3, 0.5], means))
        torch.testing.assert_close(average[name], expected)
        expected = origin[name] + sum(
            a * (mean[name] - origin[name]) for a, mean in zip([0.4, -0.3, 1.5], means)
        )
        torch.testing.assert_close(scaled[name], expected)


def test_one_precision_per_tensor() -> None:
    a = IsotropicGaussian(tensors(), {"w": 1.0, "b": torch.tensor(3.0), "scale": 0.0})
    b = IsotropicGaussian(tensors(), {"w": 3.0, "b": torch.tensor(1.0), "scale": 0.0})
    merged = merge([a, b], [0.5, 0.5])
    torch.testing.assert_close(merged["w"], 0.25 * a.mean["w"] + 0.75 * b.mean["w"])
    torch.testing.assert_close(merged["b"], 0.75 * a.mean["b"] + 0.25 * b.mean["b"])
    torch.testing.assert_close(merged["scale"], 0.5 * a.mean["scale"] + 0.5 * b.mean["scale"])


@pytest.mark.parametrize("weights", [(0.5, 0.2, 0.3), (0.3, 0.7, 0.0), (0.0, 0.4, 0.6)])
def test_a_diagonal_merge_minimises_the_surrogate(weights: tuple[float, ...]) -> None:
    tasks = [diagonal() for _ in weights]
    merged = merge(tasks, weights)
    for name in SHAPES:
        terms = [(a, t.precision[name], t.mean[name]) for a, t in zip(weights, tasks)]
        expected = sum(a * s * m for a, s, m in terms) / sum(a * s for a, s, _ in terms)
        torch.testing.assert_close(merged[name], expected)


def test_where_no_task_has_curvature_the_weights_decide() -> None:
    a, b = diagonal(), diagonal()
    c = diagonal()
    for task in (a, b, c):
        task.precision["w"][0] = 0.0
    c.precision["w"][0, 1] = 2.0
    merged = merge([a, b, c], [0.25, 0.25, 0.5])
    expected = 0.25 * a.mean["w"][0] + 0.25 * b.mean["w"][0] + 0.5 * c.mean["w"][0]
    expected[1] = c.mean["w"][0, 1]
    torch.testing.assert_close(merged["w"][0], expected)
    assert all(tensor.isfinite().all() for tensor in merged.values())


def test_weights_by_name_and_in_order() -> None:
    a, b = diagonal(), diagonal()
    in_order = merge([a, b], [0.25, 0.75])
    for weights in ({"b": 0.75, "a": 0.25}, (0.25, 0.75), torch.tensor([0.25, 0.75])):
        named = merge({"a": a, "b": b}, weights)
        assert all(torch.equal(named[name], in_order[name]) for name in SHAPES)


def test_large_tensors_are_merged_in_blocks() -> None:
    size = (1 << 20) + 12345
    tasks = [
        DiagonalGaussian({"x": torch.randn(size)}, {"x": torch.rand(size) + 0.1}) for _ in range(3)
    ]
    for dtype in (torch.float32, torch.bfloat16):
        cast = [
            DiagonalGaussian({"x": t.mean["x"].to(dtype)}, {"x": t.precision["x"]}) for t in tasks
        ]
        merged = merge(cast, [0.2, 0.3, 0.5])["x"]
        total = sum(a * t.precision["x"] for a, t in zip([0.2, 0.3, 0.5], cast))
        exact = (
            sum(a * t.precision["x"] * t.mean["x"].float() for a, t in zip([0.2, 0.3, 0.5], cast))
            / total
        )
        assert merged.dtype == dtype
        torch.testing.assert_close(merged, exact.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_low_precision_accumulates_in_fp32_and_fp64_stays(dtype: torch.dtype) -> None:
    tasks = [IsotropicGaussian({"x": torch.randn(1000).to(dtype)}) for _ in range(50)]
    merged = merge(tasks, [1 / 50] * 50)["x"]
    exact = torch.stack([t.mean["x"].double() for t in tasks]).mean(0)
    assert merged.dtype == dtype
    if dtype == torch.float64:
        assert (merged - exact).abs().max() < 1e-15
    else:
        # Rounded once, at the end: a sum of 50 terms in 16 bits would hardly ever be right.
        assert (merged == exact.to(dtype)).double().mean() > 0.99


def test_inputs_stay_as_they_are_and_outputs_are_new() -> None:
    a, b = diagonal(), diagonal()
    before = [tensor.clone() for task in (a, b) for tensor in task.mean.values()]
    for weights in ([0.5, 0.5], [1.0, 0.0]):
        merge([a, b], weights)["w"].fill_(7.0)
    after = [tensor for task in (a, b) for tensor in task.mean.values()]
    assert all(torch.equal(x, y) for x, y in zip(before, after))


def test_parameters_and_strided_tensors_merge() -> None:
    a = DiagonalGaussian({"w": torch.nn.Parameter(torch.randn(4, 3)).T}, {"w": torch.ones(4, 3).T})
    b = DiagonalGaussian({"w": torch.randn(3, 4)}, {"w": torch.ones(3, 1).expand(3, 4)})
    merged = merge([a, b], [0.5, 0.5])["w"]
    torch.testing.assert_close(merged, (a.mean["w"].detach() + b.mean["w"]) / 2)
    assert not merged.requires_grad


good = diagonal()
iso = IsotropicGaussian(tensors())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            DiagonalGaussian({"w": good.mean["w"]}, {"w": good.precision["w"]}),
            "task 'bad': mean lacks the tensor 'b' that task 'good' has",
        ),
        (
            DiagonalGaussian({**good.mean, "x": torch.ones(1)}, good.precision),
            "task 'bad': mean has a tensor 'x' that task 'good' lacks",
        ),
        (
            DiagonalGaussian(good.mean, {k: v for k, v in good.precision.items() if k != "b"}),
            "task 'bad': precision lacks the tensor 'b' that task 'bad''s mean has",
        ),
        (
            DiagonalGaussian({**good.mean, "w": torch.ones(5, 3)}, good.precision),
            "task 'bad': precision 'w' has shape (3, 5), expected (5, 3)",
        ),
        (
            DiagonalGaussian(
                {**good.mean, "w": torch.ones(5, 3)}, {**good.precision, "w": torch.ones(5, 3)}
            ),
            "task 'bad': mean 'w' has shape (5, 3), but task 'good' has (3, 5)",
        ),
        (
            DiagonalGaussian({**good.mean, "w": good.mean["w"].double()}, good.precision),
            "task 'bad': mean 'w' is float64, but task 'good' has float32",
        ),
        (
            DiagonalGaussian({**good.mean, "b": torch.ones(5).long()}, good.precision),
            "task 'bad': mean 'b' is int64; only floating-point tensors are merged",
        ),
        (
            DiagonalGaussian(changed(good.mean, "w", 3, math.nan), good.precision),
            "task 'bad': mean 'w' holds NaN",
        ),
        (
            DiagonalGaussian(good.mean, changed(good.precision, "w", 3, math.nan)),
            "task 'bad': precision 'w' holds NaN",
        ),
        (
            DiagonalGaussian(good.mean, changed(good.precision, "w", 3, math.inf)),
            "task 'bad': precision 'w' holds NaN or an infinity",
        ),
        (
            DiagonalGaussian(good.mean, changed(good.precision, "b", 4, -1.0)),
            "task 'bad': precision 'b' is negative (-1)",
        ),
    ],
)
def test_bad_posteriors_are_named(bad: DiagonalGaussian, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        merge({"good": good, "bad": bad}, [0.5, 0.5])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        (-1.0, "task 1: precision is negative"),
        (math.nan, "task 1: precision holds NaN"),
        ({"w": 1.0, "b": 1.0}, "task 1: precision lacks the tensor 'scale'"),
        ({"w": 1.0, "b": 1.0, "scale": -2.0}, "task 1: precision 'scale' is negative"),
        (torch.ones(2), "task 1: precision has shape (2,), expected ()"),
    ],
)
def test_bad_scalar_precisions_are_named(precision: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        merge([iso, IsotropicGaussian(iso.mean, precision)], [0.5, 0.5])  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_a_change_in_place_is_noticed() -> None:
    task = diagonal()
    merge([task, good], [0.5, 0.5])
    task.precision["w"][0, 0] = -1.0
    with pytest.raises(ValueError, match="'w' is negative"):
        merge([task, good], [0.5, 0.5])
    task.precision["w"] = torch.full((3, 5), math.nan)
    with pytest.raises(ValueError, match="'w' holds NaN"):
        merge([task, good], [0.5, 0.5])


def test_a_task_of_weight_zero_is_dropped_even_with_nan() -> None:
    bad = DiagonalGaussian(
        {name: torch.full(shape, math.nan) for name, shape in SHAPES.items()}, good.precision
    )
    other = diagonal()
    for weights in ([0.3, 0.0, 0.7], [0.0, 0.0, 1.0]):
        merged = merge([good, bad, other], weights)
        without = merge([good, other], [weights[0], weights[2]])
        assert all(torch.equal(merged[name], without[name]) for name in SHAPES)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5], "1 weights for 2 posteriors"),
        ([0.5, math.nan], "the weight of task '1' is nan"),
        ([0.5, 0.6], "add up to 1.1, expected 1"),
        ([0.5, 0.4997], "add up to 0.9997, expected 1"),
        ([-0.5, 1.5], "the weight of task 0 is -0.5; negative weights"),
    ],
)
def test_bad_weights(weights: list[float], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        merge([good, good], weights)
    assert message in str(caught.value)


@pytest.mark.parametrize("family", ["isotropic", "diagonal", "mixture"])
@pytest.mark.parametrize("weights", [[0.333333] * 3, [0.3334, 0.3333, 0.3334]])
def test_weights_that_were_rounded_are_divided_by_their_sum(
    family: str, weights: list[float]
) -> None:
    def posterior() -> Posterior:
        if family == "isotropic":
            return IsotropicGaussian(tensors())
        if family == "diagonal":
            return diagonal()
        return Mixture([diagonal(), diagonal()], torch.full((2,), -math.log(2)), "fixed")

    posteriors = [posterior() for _ in range(3)]
    total = math.fsum(weights)
    merged = merge(posteriors, weights)
    expected = merge(posteriors, [weight / total for weight in weights])
    assert all(torch.equal(merged[name], expected[name]) for name in SHAPES)


def test_bad_names_families_and_types() -> None:
    with pytest.raises(ValueError, match=r"weights are for \['a', 'c'\]"):
        merge({"a": good, "b": good}, {"a": 0.5, "c": 0.5})
    with pytest.raises(TypeError, match="by task name, but posteriors are not"):
        merge([good, good], {"a": 0.5, "b": 0.5})
    with pytest.raises(TypeError, match="DiagonalGaussian for task 0, IsotropicGaussian for"):
        merge([good, iso], [0.5, 0.5])
    with pytest.raises(TypeError, match="task 1 is a dict"):
        merge([good, good.mean], [0.5, 0.5])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="at least one"):
        merge([], [])
    with pytest.raises(TypeError, match="use IsotropicGaussian"):
        DiagonalGaussian(good.mean, 1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="mean must be a dict of at least one tensor"):
        merge([IsotropicGaussian({})], [1.0])


def test_negative_weights_need_a_positive_merged_precision() -> None:
    strong = IsotropicGaussian(iso.mean, 4.0)
    with pytest.raises(ValueError, match="merged precision of 'w' is -2"):
        merge([strong, iso], [-1.0, 2.0])
    assert merge([strong, iso], [2.0, -1.0])["w"].isfinite().all()
