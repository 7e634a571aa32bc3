from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from helpers import flip_byte, same, truncate
from torch import nn

from optuna_merge.finetuning._checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_moments,
    restore_moments,
    save_checkpoint,
)

CHECKPOINT = Checkpoint(
    step=5,
    seconds=0.1 + 0.2,
    parameters={"body.0.weight": torch.randn(2, 3), "moment.bias": torch.zeros(1)},
    moments={"exp_avg.body.0.weight": torch.randn(2, 3), "step.body.0.weight": torch.tensor(5.0)},
    evaluations={3: {"red": {"loss": [1.0, 0.5]}}, 5: {"red": {"loss": [0.5, 0.25]}}},
    scaler={"scale": 1024.0},
)


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "checkpoint.safetensors"
    save_checkpoint(path, "key", CHECKPOINT)
    found = load_checkpoint(path, "key")
    assert found is not None
    assert same(found.parameters, CHECKPOINT.parameters)
    assert same(found.moments, CHECKPOINT.moments)
    for field in ("step", "seconds", "evaluations", "scaler"):
        assert getattr(found, field) == getattr(CHECKPOINT, field)


def test_nothing_is_found_where_nothing_sound_of_this_run_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    assert load_checkpoint(path, "key") is None
    assert not caplog.records
    for damage, reason in [(truncate, "truncated"), (flip_byte, "altered")]:
        save_checkpoint(path, "key", CHECKPOINT)
        damage(path)
        with caplog.at_level(logging.WARNING):
            assert load_checkpoint(path, "key") is None
        assert reason in caplog.messages[-1] and str(path) in caplog.messages[-1]
    save_checkpoint(path, "key", CHECKPOINT)
    assert load_checkpoint(path, "other") is None
    assert "belongs to a run with other settings" in caplog.messages[-1]


def test_an_optimizer_goes_on_with_its_moments() -> None:
    def made() -> tuple[nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        # Two groups in another order than the names' alphabet.
        groups = [{"params": [layer.weight]}, {"params": [layer.bias], "weight_decay": 0.0}]
        return layer, torch.optim.AdamW(groups, lr=0.1)

    def step(layer: nn.Linear, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            layer(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()

    names = ["weight", "bias"]
    expected = made()
    step(*expected, 5)
    layer, optimizer = made()
    step(layer, optimizer, 3)
    moments = {name: t.clone() for name, t in optimizer_moments(optimizer, names).items()}
    again, fresh = made()
    again.load_state_dict(layer.state_dict())
    restore_moments(fresh, names, moments)
    step(again, fresh, 2)
    assert same(again.state_dict(), expected[0].state_dict())
