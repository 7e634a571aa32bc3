"""Averages of checkpoints on disk; of LoRA adapters, of their updates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from language_helpers import PAD
from torch import Tensor
from trainer_helpers import bert, llama
from transformers import BertForSequenceClassification

from optuna_merge.exceptions import ProgramError
from optuna_merge.trainers._merged_checkpoints import (
    check_alike,
    checkpoint_hash,
    merge_checkpoints,
)

WEIGHTS = {"a": 0.25, "b": 0.75, "c": 0.0}
INPUT = torch.tensor([[5, 6, 7, PAD]])


def saved_adapter(folder: Path, seed: int, **options: Any) -> Path:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        **({"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj"]} | options)
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(llama(), config)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter.data)
    model.save_pretrained(folder)
    return folder


def updates(folder: Path) -> dict[str, Tensor]:
    """The weights that an adapter makes of the base's, when PEFT loads it."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = peft.PeftModel.from_pretrained(llama(), folder).merge_and_unload()
    torch.manual_seed(0)
    before = llama().state_dict()
    return {name: tensor - before[name] for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}], ids=["plain", "rslora"])
def test_the_update_of_merged_adapters_is_the_mean_of_theirs(
    options: dict[str, Any], tmp_path: Path
) -> None:
    paths = {task: saved_adapter(tmp_path / task, ord(task), **options) for task in WEIGHTS}
    merge_checkpoints(paths, WEIGHTS, tmp_path / "merged")
    found, a, b = updates(tmp_path / "merged"), updates(paths["a"]), updates(paths["b"])
    assert found.keys() == a.keys()
    for name in found:
        torch.testing.assert_close(found[name], 0.25 * a[name] + 0.75 * b[name])
    assert found["model.layers.0.self_attn.q_proj.weight"].abs().max() > 1
    merge_checkpoints(paths, {"a": 0.0, "b": 0.0, "c": 1.0}, tmp_path / "alone")
    config = json.loads((tmp_path / "alone" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"up_proj": 3}}, "rank_pattern"),
        ({"r": 3}, "adapters of one base and one configuration"),
    ],
)
def test_adapters_that_are_not_plain_are_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    paths = {
        "a": saved_adapter(tmp_path / "a", 1, **({} if "r" in options else options)),
        "b": saved_adapter(tmp_path / "b", 2, **options),
    }
    with pytest.raises((ProgramError, ValueError), match=message):
        check_alike(paths)


def test_model_folders_are_averaged_and_can_be_loaded(tmp_path: Path) -> None:
    models = {}
    for seed, task in enumerate(WEIGHTS):
        torch.manual_seed(seed)
        models[task] = bert()
        models[task].save_pretrained(tmp_path / task)
    paths = {task: tmp_path / task for task in WEIGHTS}
    merge_checkpoints(paths, WEIGHTS, tmp_path / "deep" / "merged")
    found = BertForSequenceClassification.from_pretrained(tmp_path / "deep" / "merged")
    for name, tensor in found.named_parameters():
        a, b = (models[task].get_parameter(name) for task in "ab")
        torch.testing.assert_close(tensor, 0.25 * a + 0.75 * b)
    assert len({checkpoint_hash(path) for path in paths.values()}) == 3


def test_a_folder_without_tensors_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match=r"has left no checkpoint in .*write it to \{check"):
        checkpoint_hash(tmp_path)
