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


@pytest.mark.parametrize("name", [name for name in NAMES if name != "kronecker"])
def test_damping_adds_to_the_diagonal_of_the_precision(name: str) -> None:
    posterior = family(name, POINTS[0], 1)
    expected = dense(posterior) + 0.3 * torch.eye(6)
    torch.testing.assert_close(dense(damped(posterior, 0.3)), expected)
    assert damped(posterior, 0.3).mean is posterior.mean


def test_each_kronecker_factor_is_damped_by_its_share() -> None:
    posterior = family("kronecker", POINTS[0], 1)
    assert isinstance(posterior, KroneckerGaussian)
    a, g = posterior.factors["w"]
    assert a is not None and g is not None
    found = damped(posterior, 0.09)
    assert isinstance(found, KroneckerGaussian)
    assert found.damping == 0.09
    shares = [
        (after - before).diagonal()
        for after, before in zip(found.factors["w"], (a, g))
        if after is not None
    ]
    pi = ((a.trace() / 3) / (g.trace() / 2)).sqrt()
    torch.testing.assert_close(shares[0], (0.3 * pi).expand(3))
    torch.testing.assert_close(shares[1], (0.3 / pi).expand(2))
    # The prior's precision is in it: what is left without it is still positive.
    excess = dense(found) - dense(posterior) - 0.09 * torch.eye(6)
    assert torch.linalg.eigvalsh(excess).min() > 0


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_damping_does_not_depend_on_how_the_factors_share_their_scale(scale: float) -> None:
    posterior = family("kronecker", POINTS[0], 1)
    assert isinstance(posterior, KroneckerGaussian)
    a, g = posterior.factors["w"]
    assert a is not None and g is not None
    other = KroneckerGaussian(posterior.mean, {"w": (a * scale, g / scale)})
    torch.testing.assert_close(dense(damped(other, 0.3)), dense(damped(posterior, 0.3)))


def test_what_has_no_two_factors_is_damped_as_it_is() -> None:
    a, zero = spd(3, 1), torch.zeros(2, 2)
    regmean = KroneckerGaussian({"w": POINTS[0]}, {"w": (a, None)})
    found = damped(regmean, 0.3)
    assert isinstance(found, KroneckerGaussian)
    assert (found.damping, found.factors) == (0.3, regmean.factors)
    vanished = damped(KroneckerGaussian({"w": POINTS[0]}, {"w": (a, zero)}), 0.25)
    assert torch.linalg.eigvalsh(dense(vanished)).min() > 0.25


@pytest.mark.parametrize("name", NAMES)
def test_mean_curvature_is_the_mean_of_the_diagonal(name: str) -> None:
    posterior = family(name, POINTS[0], 1)
    other = damped(posterior, 2.0)
    means = [dense(each).diagonal().mean().item() for each in (posterior, other)]
    assert [mean_curvature(posterior), mean_curvature(other)] == pytest.approx(means)
    mixture = Mixture([posterior, other], torch.zeros(2))  # type: ignore[list-item]
    assert mean_curvature(mixture) == pytest.approx(sum(means) / 2)


@pytest.mark.parametrize("name", NAMES)
def test_much_damping_is_simple_averaging(name: str) -> None:
    much = 1e12 if name == "kronecker" else 1e6  # its factors tend to the identity as 1 / sqrt
    posteriors = [damped(family(name, point, i), much) for i, point in enumerate(POINTS)]
    found = merge(posteriors, [0.25, 0.75])["w"]
    torch.testing.assert_close(found, 0.25 * POINTS[0], atol=1e-3, rtol=0)
    mixtures = [Mixture([p, p], torch.zeros(2), "fixed") for p in posteriors]  # type: ignore[list-item]
    torch.testing.assert_close(merge(mixtures, [0.25, 0.75])["w"], found)
