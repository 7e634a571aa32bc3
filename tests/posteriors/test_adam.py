from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import optuna_merge.posteriors
from optuna_merge.finetuning._checkpoint import optimizer_moments
from optuna_merge.posteriors import adam_second_moments


def trained(*, named: bool) -> tuple[nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.named_parameters() if named else model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(32, 3)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def test_the_readme_s_lines_lead_from_files_to_a_posterior(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = Path(optuna_merge.posteriors.__file__).with_name("README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    first, second = (block for block in blocks if "adam_second_moments(" in block)
    monkeypatch.chdir(tmp_path)
    model, optimizer = trained(named=False)
    torch.save(model.state_dict(), "model.pt")
    torch.save(optimizer.state_dict(), "optimizer.pt")
    save_file(optimizer_moments(optimizer, ["weight", "bias"]), "optimizer.safetensors")
    found: dict[str, Any] = {}
    exec(first, found)
    curvature: dict[str, Tensor] = found["curvature"]
    expected = adam_second_moments(optimizer, ["weight", "bias"], batch_size=32)
    delta = 0.1 * float(torch.cat([h.flatten() for h in expected.values()]).mean())
    for name, parameter in model.named_parameters():
        assert torch.equal(curvature[name], expected[name])
        assert torch.equal(found["posterior"].mean[name], parameter)
        torch.testing.assert_close(found["posterior"].precision[name], expected[name] + delta)
    exec(second, found)
    assert all(torch.equal(found["curvature"][name], expected[name]) for name in expected)


def test_names_that_the_optimizer_keeps_need_not_be_given() -> None:
    _, optimizer = trained(named=True)
    if "param_names" not in optimizer.state_dict()["param_groups"][0]:
        pytest.skip("this version of torch keeps no names")
    found = adam_second_moments(optimizer.state_dict(), batch_size=8)
    expected = adam_second_moments(optimizer, ["weight", "bias"], batch_size=8)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    with pytest.raises(ValueError, match="the optimizer kept no names"):
        adam_second_moments(trained(named=False)[1], batch_size=8)
