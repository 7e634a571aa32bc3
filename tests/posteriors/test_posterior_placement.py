from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from optuna_merge.posteriors import (
    DiagonalGaussian,
    FullGaussian,
    IsotropicGaussian,
    KroneckerGaussian,
    LowRankGaussian,
    Mixture,
    RowsColumnsGaussian,
    posterior_bytes,
    posterior_to,
)

MEAN = {"w": torch.randn(3, 2), "b": torch.randn(3)}
ONES = {name: torch.ones_like(tensor) for name, tensor in MEAN.items()}
DIAGONAL = DiagonalGaussian(MEAN, ONES)
FACTORS = {"w": (torch.eye(2), None)}

CASES: list[tuple[Any, int]] = [
    (IsotropicGaussian(MEAN, torch.tensor(2.0)), 9 + 1),
    (DIAGONAL, 2 * 9),
    (LowRankGaussian(MEAN, ONES, {k: torch.randn(*t.shape, 4) for k, t in MEAN.items()}), 54),
    (KroneckerGaussian(MEAN, FACTORS, {"b": ONES["b"]}, 0.1), 9 + 4 + 3),
    (
        RowsColumnsGaussian(
            MEAN, {"w": torch.ones(3)}, {"w": torch.ones(2)}, {"b": ONES["b"]}, 0.1
        ),
        9 + 3 + 2 + 3,
    ),
    (FullGaussian(MEAN, torch.eye(9)), 9 + 81),
    (Mixture([DIAGONAL, DIAGONAL], torch.zeros(2)), 2 * 18 + 2),
]


def devices(posterior: Any) -> set[tuple[str, bool]]:
    """Device and whether it is a single number, of every tensor."""
    return {
        (part.value.device.type, part.value.ndim == 0)
        for part in posterior.parts()
        if isinstance(part.value, Tensor)
    }


@pytest.mark.parametrize("posterior, numbers", CASES)
def test_every_tensor_is_counted_and_moved(posterior: Any, numbers: int) -> None:
    assert posterior_bytes(posterior) == 4 * numbers
    moved = posterior_to(posterior, "meta")
    assert type(moved) is type(posterior)
    assert devices(moved) - {("cpu", True)} == {("meta", False)}
    assert devices(posterior) <= {("cpu", False), ("cpu", True)}
    here = posterior_to(posterior, "cpu")
    assert here is not posterior
    assert all(here.mean[name] is tensor for name, tensor in MEAN.items())
