"""How Kronecker factors are damped."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from optuna_merge.posteriors import KroneckerGaussian
from optuna_merge.posteriors._kronecker_fisher import kronecker_fisher

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


def test_a_tied_weight_is_refused_where_it_is_trained() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(5, 3)
            self.out = nn.Linear(3, 5, bias=False)
            self.out.weight = self.words.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.out(self.words(tokens).mean(1))

    model = Tied().eval()
    batches = [{"tokens": torch.tensor([[0, 1], [2, 3]]), "labels": torch.tensor([4, 0])}]

    def estimate() -> object:
        return kronecker_fisher(
            model,
            batches,
            predict=lambda batch: model(batch["tokens"]),
            loss=lambda outputs, labels: cross_entropy(outputs, labels, reduction="none"),
            sample_labels=None,
        )

    with pytest.raises(ValueError, match=r"'words.weight' and 'out.weight' are one tied weight"):
        estimate()


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
