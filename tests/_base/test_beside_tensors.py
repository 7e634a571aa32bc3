"""What networks of equal tensors may differ in."""

from __future__ import annotations

from typing import Any

import pytest
import timm
from torch import nn
from trainer_helpers import bert

from optuna_merge._base.beside_tensors import beside_tensors


def test_rates_of_dropout_are_found_in_layers_and_configs() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.25), nn.Dropout(0.0))
    assert beside_tensors(network) == {"1": 0.25}
    for rate in ("drop_path_rate", "drop_rate"):
        assert 0.2 in beside_tensors(timm.create_model("test_resnet", **{rate: 0.2})).values()
    found = beside_tensors(bert())
    assert found[".config.hidden_dropout_prob"] == 0.1
    assert len([name for name in found if "config" in name]) == 2


@pytest.mark.parametrize("options", [{"lora_alpha": 4}, {"use_rslora": True}])
def test_the_scaling_of_adapters_is_found(options: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")
    given = {"r": 4, "lora_alpha": 8, "target_modules": ["query"]}
    plain, other = (
        beside_tensors(peft.get_peft_model(bert(), peft.LoraConfig(**(given | changes))))
        for changes in ({}, options)
    )
    assert plain.keys() == other.keys()
    assert {"default": 2.0} in plain.values() and {"default": 2.0} not in other.values()
