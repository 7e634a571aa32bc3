"""Another base is told from a finetune by the cosines of matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from optuna_merge.fitting import UNRELATED, median_cosine
from optuna_merge.fitting._given import check_base


def model(seed: int) -> dict[str, Tensor]:
    """Matrices of random values, and a norm, which is alike in all models."""
    draws = torch.Generator().manual_seed(seed)
    matrices = {f"{i}": torch.randn(8, 16, generator=draws) for i in range(5)}
    return matrices | {"norm": torch.ones(16)}


def test_finetunes_are_near_and_other_starts_are_not() -> None:
    base = model(0)
    shrunken = {name: 0.1 * tensor for name, tensor in base.items()}
    assert median_cosine(shrunken, base) == pytest.approx(1), "weight decay turns nothing"
    far = {name: tensor + model(1)[name] for name, tensor in base.items()}
    assert median_cosine(far, base) == pytest.approx(2**-0.5, abs=0.1)
    other = median_cosine(model(1), base)
    assert other is not None and other < UNRELATED
    check_base("", far, base)
    with pytest.raises(ValueError, match="task 'math': its matrices have nothing in common"):
        check_base("task 'math'", model(1), base)


def test_of_a_new_head_nothing_is_concluded() -> None:
    base = model(0)
    assert median_cosine(base | {"4": model(1)["4"]}, base) == pytest.approx(1)


def test_what_says_nothing_is_left_out() -> None:
    zero = {"up": torch.zeros(4, 4), "bias": torch.ones(4)}
    trained = {"up": torch.ones(4, 4), "bias": -torch.ones(4)}
    assert median_cosine(trained, zero) is None
    check_base("", trained, zero)
