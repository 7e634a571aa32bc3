from __future__ import annotations

import pytest
import torch

from optuna_merge.merging import merge
from optuna_merge.posteriors import (
    DiagonalGaussian,
    FullGaussian,
    IsotropicGaussian,
    KroneckerGaussian,
    LowRankGaussian,
    Mixture,
    Posterior,
    damped,
    mean_curvature,
)

POINTS = [torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), torch.zeros(2, 3)]


def spd(size: int, seed: int) -> torch.Tensor:
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    return root @ root.T


def dense(posterior: Posterior) -> torch.Tensor:
    """The precision as one matrix over the flattened tensor."""
    match posterior:
        case IsotropicGaussian():
            return posterior.scalar("w") * torch.eye(6)
        case DiagonalGaussian():
            return posterior.precision["w"].flatten().diag()
        case LowRankGaussian():
            rows = posterior.rows()["w"]
            return posterior.diagonal["w"].flatten().diag() + rows @ rows.T
        case KroneckerGaussian():
            a, g = posterior.factors["w"]
            assert a is not None and g is not None
            return torch.kron(g, a) + posterior.damping * torch.eye(6)
        case FullGaussian():
            return posterior.precision
    raise AssertionError(posterior)


def family(name: str, point: torch.Tensor, seed: int) -> Posterior:
    mean = {"w": point}
    if name == "isotropic":
        return IsotropicGaussian(mean, 0.5)
    if name == "isotropic by tensor":
        return IsotropicGaussian(mean, {"w": 0.25})
    if name == "diagonal":
        return DiagonalGaussian(mean, {"w": spd(6, seed).diagonal().reshape(2, 3)})
    if name == "low rank":
        factors = {"w": torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(seed))}
        return LowRankGaussian(mean, {"w": torch.ones(2, 3)}, factors)
    if name == "kronecker":
        return KroneckerGaussian(mean, {"w": (spd(3, seed), spd(2, seed + 9))})
    return FullGaussian(mean, spd(6, seed))


NAMES = ["isotropic", "isotropic by tensor", "diagonal", "low rank", "kronecker", "full"]


@pytest.mark.parametrize("name", NAMES)
def test_damping_adds_to_the_diagonal_of_the_precision(name: str) -> None:
    posterior = family(name, POINTS[0], 1)
    expected = dense(posterior) + 0.3 * torch.eye(6)
    torch.testing.assert_close(dense(damped(posterior, 0.3)), expected)
    assert damped(posterior, 0.3).mean is posterior.mean


@pytest.mark.parametrize("name", NAMES)
def test_mean_curvature_is_the_mean_of_the_diagonal(name: str) -> None:
    posterior = family(name, POINTS[0], 1)
    assert mean_curvature(posterior) == pytest.approx(dense(posterior).diagonal().mean().item())
    mixture = Mixture([posterior, damped(posterior, 2.0)], torch.zeros(2))  # type: ignore[list-item]
    assert mean_curvature(mixture) == pytest.approx(mean_curvature(posterior) + 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_much_damping_is_simple_averaging(name: str) -> None:
    posteriors = [damped(family(name, point, i), 1e6) for i, point in enumerate(POINTS)]
    found = merge(posteriors, [0.25, 0.75])["w"]
    torch.testing.assert_close(found, 0.25 * POINTS[0], atol=1e-3, rtol=0)
    mixtures = [Mixture([p, p], torch.zeros(2), "fixed") for p in posteriors]  # type: ignore[list-item]
    torch.testing.assert_close(merge(mixtures, [0.25, 0.75])["w"], found)
