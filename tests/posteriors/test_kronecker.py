"""How Kronecker factors are damped."""

from __future__ import annotations

import pytest
import torch

from optuna_merge.posteriors import KroneckerGaussian

POINT = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


def spd(size: int, seed: int) -> torch.Tensor:
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    return root @ root.T


def kronecker() -> KroneckerGaussian:
    return KroneckerGaussian({"w": POINT}, {"w": (spd(3, 1), spd(2, 10))})


def dense(posterior: KroneckerGaussian) -> torch.Tensor:
    """The precision as one matrix over the flattened tensor."""
    a, g = posterior.factors["w"]
    assert a is not None and g is not None
    return torch.kron(g, a) + posterior.damping * torch.eye(6)


def test_each_kronecker_factor_is_damped_by_its_share() -> None:
    posterior = kronecker()
    a, g = posterior.factors["w"]
    assert a is not None and g is not None
    found = posterior.damped(0.09)
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
    posterior = kronecker()
    a, g = posterior.factors["w"]
    assert a is not None and g is not None
    other = KroneckerGaussian(posterior.mean, {"w": (a * scale, g / scale)})
    torch.testing.assert_close(dense(other.damped(0.3)), dense(posterior.damped(0.3)))


def test_what_has_no_two_factors_is_damped_as_it_is() -> None:
    a, zero = spd(3, 1), torch.zeros(2, 2)
    regmean = KroneckerGaussian({"w": POINT}, {"w": (a, None)})
    found = regmean.damped(0.3)
    assert (found.damping, found.factors) == (0.3, regmean.factors)
    vanished = KroneckerGaussian({"w": POINT}, {"w": (a, zero)}).damped(0.25)
    assert torch.linalg.eigvalsh(dense(vanished)).min() > 0.25
