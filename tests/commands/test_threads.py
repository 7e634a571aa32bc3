"""Small models are finetuned on one thread, unless somebody has said otherwise."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from optuna_merge.commands import _fitted
from optuna_merge.commands._fitted import SMALL, one_thread_if_small


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Torch with its default number of threads, which is not one."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(3)
    monkeypatch.setattr(_fitted, "_default", 3)
    yield 3
    torch.set_num_threads(before)


def test_a_small_model_has_one_thread(many: int) -> None:
    one_thread_if_small(nn.Linear(10, 10))
    assert torch.get_num_threads() == 1


def test_a_large_model_keeps_all(many: int) -> None:
    one_thread_if_small(nn.Linear(SMALL, 1, device="meta"))
    assert torch.get_num_threads() == many


def test_what_was_said_stays(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    one_thread_if_small(nn.Linear(10, 10))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(many)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    one_thread_if_small(nn.Linear(10, 10))
    assert torch.get_num_threads() == many
