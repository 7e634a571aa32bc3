"""Row and column means in place of a diagonal."""

from __future__ import annotations

import pytest
import torch

from optuna_merge.merging import merge
from optuna_merge.posteriors import (
    DiagonalGaussian,
    Mixture,
    RowsColumnsGaussian,
    posterior_bytes,
    rows_columns,
)


def diagonal(precision: dict[str, torch.Tensor]) -> DiagonalGaussian:
    return DiagonalGaussian({k: torch.randn_like(p) for k, p in precision.items()}, precision)


def test_products_of_rows_and_columns_vectors_and_scalars_are_kept_exactly() -> None:
    torch.manual_seed(0)
    rows, columns = torch.rand(5).double(), torch.rand(2, 3, 1).double()
    exact = diagonal(
        {
            "w": torch.outer(rows, columns.flatten()),
            "conv": rows[:, None, None, None] * columns,
            "b": torch.rand(4).double(),
            "s": torch.rand(()).double(),
        }
    )
    found = rows_columns(exact)
    for name, precision in exact.precision.items():
        torch.testing.assert_close(found.elementwise(name), precision, rtol=1e-14, atol=0)
    assert {name: tuple(c.shape) for name, c in found.columns.items()} == {"w": (6,), "conv": (6,)}
    assert posterior_bytes(found) == 8 * (30 + 30 + 5 + 2 * (5 + 6) + 5)
    others = [diagonal(exact.precision) for _ in range(2)]
    merged = merge([rows_columns(each) for each in others], [0.3, 0.7])
    for name, tensor in merge(others, [0.3, 0.7]).items():
        torch.testing.assert_close(merged[name], tensor)


def test_other_matrices_keep_the_means_of_rows_and_columns() -> None:
    torch.manual_seed(0)
    precision = torch.rand(5, 3).double() ** 4
    found = rows_columns(diagonal({"w": precision}))
    products = found.elementwise("w")
    assert isinstance(products, torch.Tensor)
    assert (products - precision).abs().max() > 0.1
    for dim in (0, 1):
        torch.testing.assert_close(products.mean(dim), precision.mean(dim))
    assert found.mean_curvature() == pytest.approx(precision.mean().item(), rel=1e-12)

    # No other product of a row and a column is nearer in generalised Kullback-Leibler divergence.
    def divergence(estimate: torch.Tensor) -> torch.Tensor:
        return (precision * (precision / estimate).log() - precision + estimate).sum()

    for _ in range(20):
        other = torch.outer(torch.rand(5) * 0.2 + 0.9, torch.rand(3) * 0.2 + 0.9)
        assert divergence(products) < divergence(products * other)


def test_where_there_is_no_curvature_the_damping_decides() -> None:
    precision = {"w": torch.tensor([[0.0, 0.0], [0.0, 3.0]]), "none": torch.zeros(2, 3)}
    undamped = [rows_columns(diagonal(precision)) for _ in range(2)]
    torch.testing.assert_close(undamped[0].elementwise("w"), precision["w"])
    torch.testing.assert_close(undamped[0].elementwise("none"), precision["none"])
    # Curvature of zero for all: the mean, as of equal precisions that tend to zero.
    merged = merge(undamped, [0.5, 0.5])["none"]
    average = (undamped[0].mean["none"] + undamped[1].mean["none"]) / 2
    torch.testing.assert_close(merged, average)
    damped = [each.damped(0.5) for each in undamped]
    assert torch.equal(damped[0].elementwise("none"), torch.full((2, 3), 0.5))
    # Positive everywhere, so that mixtures have densities; without the damping they have none.
    merge([Mixture(damped, torch.zeros(2), "coordinate")], [1.0])
    with pytest.raises(ValueError, match="a mixture's precisions must be positive"):
        merge([Mixture(undamped, torch.zeros(2), "coordinate")], [1.0])


def test_products_of_tiny_curvatures_do_not_vanish() -> None:
    tiny = torch.full((3, 4), 1e-30)
    torch.testing.assert_close(rows_columns(diagonal({"w": tiny})).elementwise("w"), tiny)


def test_what_does_not_fit_is_refused() -> None:
    mean = {"w": torch.zeros(2, 3)}
    two, three = {"w": torch.ones(2)}, {"w": torch.ones(3)}
    with pytest.raises(ValueError, match="'w' has only one of rows and columns"):
        RowsColumnsGaussian(mean, two, {})
    with pytest.raises(ValueError, match="'w' has rows and columns, and an elementwise precision"):
        RowsColumnsGaussian(mean, two, three, mean)
    sound = RowsColumnsGaussian(mean, two, three)
    turned = RowsColumnsGaussian(mean, three, two)
    with pytest.raises(ValueError, match=r"task 1: rows 'w' has shape \(3,\), expected \(2,\)"):
        merge([sound, turned], [0.5, 0.5])
    negative = RowsColumnsGaussian(mean, two, {"w": -three["w"]})
    with pytest.raises(ValueError, match=r"task 0: columns 'w' is negative \(-1\)"):
        merge([negative, sound], [0.5, 0.5])
