from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from optuna_merge.exceptions import CorruptFileError
from optuna_merge.merging import merge
from optuna_merge.posteriors import IsotropicGaussian, load_checkpoint, load_lora_factors

peft = pytest.importorskip("peft")


def make_model(kind: str) -> Any:
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        GPT2Config,
        GPT2LMHeadModel,
    )

    torch.manual_seed(0)
    if kind == "bert":
        config = BertConfig(
            vocab_size=30,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
        )
        return BertForSequenceClassification(config)
    return GPT2LMHeadModel(GPT2Config(vocab_size=30, n_positions=9, n_embd=8, n_layer=2, n_head=2))


def save_adapter(
    folder: Path, base: Path, seed: int = 0, kind: str = "bert", **options: Any
) -> dict[str, Tensor]:
    """Save a random adapter of a saved base; return what peft itself makes of both."""
    model = type(make_model(kind)).from_pretrained(base)
    torch.manual_seed(seed)
    settings = {"r": 2, "lora_alpha": 5, "init_lora_weights": False, **options}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "modules_to_save" in name or (parameter.requires_grad and name.endswith("bias")):
                parameter.normal_()
    adapted.save_pretrained(folder)
    return dict(adapted.merge_and_unload().state_dict())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("bert", {"target_modules": ["query", "dense"]}),
        ("bert", {"target_modules": ["query"], "use_rslora": True}),
        ("bert", {"target_modules": ["query", "value"], "rank_pattern": {"value": 3}}),
        ("bert", {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
        ("bert", {"target_modules": ["query"], "bias": "all"}),
        ("bert", {"target_modules": ["word_embeddings"]}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    ],
)
def test_lora_adapters_are_what_peft_makes_of_them(
    tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    make_model(kind).save_pretrained(tmp_path / "base")
    expected = save_adapter(tmp_path / "adapter", tmp_path / "base", kind=kind, **options)
    base = load_checkpoint(tmp_path / "base")
    loaded = load_checkpoint(tmp_path / "adapter", base=tmp_path / "base")
    assert loaded.keys() == base.keys()
    assert any(not torch.equal(loaded[name], base[name]) for name in base)
    for name, tensor in loaded.items():
        torch.testing.assert_close(tensor, expected[name], msg=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "use_dora is not supported"),
        ({"alpha_pattern": {"query": 3}}, "alpha_pattern is not supported"),
    ],
)
def test_other_adapters_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    make_model("bert").save_pretrained(tmp_path / "base")
    save_adapter(tmp_path / "adapter", tmp_path / "base", target_modules=["query"], **options)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path / "adapter", base=tmp_path / "base")


def test_factors_with_a_shared_a_merge_exactly(tmp_path: Path) -> None:
    make_model("bert").save_pretrained(tmp_path / "base")
    folders = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(folders):
        save_adapter(folder, tmp_path / "base", seed, target_modules=["query"])
    with pytest.raises(ValueError, match=r"two: the factor A or the scaling of '.*query.weight'"):
        load_lora_factors(folders)
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    shared = {k: one[k] if "lora_A" in k else v for k, v in two.items()}
    save_file(shared, folders[1] / "adapter_model.safetensors", {"format": "pt"})

    weights = [0.3, 0.7]
    factors = merge([IsotropicGaussian(b) for b in load_lora_factors(folders)], weights)
    assert factors.keys() == {name for name in one if "lora_B" in name}
    merged = tmp_path / "merged"
    merged.mkdir()
    (merged / "adapter_config.json").write_text((folders[0] / "adapter_config.json").read_text())
    save_file({**one, **factors}, merged / "adapter_model.safetensors", {"format": "pt"})
    by_factors = load_checkpoint(merged, base=tmp_path / "base")
    dense = [load_checkpoint(folder, base=tmp_path / "base") for folder in folders]
    by_products = merge([IsotropicGaussian(each) for each in dense], weights)
    for name, tensor in by_products.items():
        torch.testing.assert_close(by_factors[name], tensor, atol=1e-6, rtol=1e-5)


def test_folders_files_and_timm_checkpoints(tmp_path: Path) -> None:
    model = make_model("bert")
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="5KB")
    whole, shards = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "shards")
    assert whole.keys() == shards.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(whole[name], shards[name]) for name in whole)
    single = load_checkpoint(tmp_path / "whole" / "model.safetensors")
    assert single.keys() == whole.keys()

    import timm

    net = timm.create_model("resnet10t", num_classes=2)
    torch.save({"state_dict": net.state_dict(), "epoch": 3}, tmp_path / "timm.pth.tar")
    loaded = load_checkpoint(tmp_path / "timm.pth.tar")
    # Parameters only: neither counters nor running statistics of batch norms.
    assert loaded.keys() == dict(net.named_parameters()).keys()
    tied = torch.randn(3, 2)
    torch.save({"in.weight": tied, "out.weight": tied, "row": tied[0]}, tmp_path / "tied.pt")
    assert load_checkpoint(tmp_path / "tied.pt").keys() == {"in.weight", "row"}


def test_bad_checkpoints(tmp_path: Path) -> None:
    make_model("bert").save_pretrained(tmp_path / "base")
    adapter = tmp_path / "adapter"
    save_adapter(adapter, tmp_path / "base", target_modules=["query"])
    with pytest.raises(ValueError, match="is an adapter: give the checkpoint"):
        load_checkpoint(adapter)
    with pytest.raises(ValueError, match="is no adapter"):
        load_checkpoint(tmp_path / "base", base=tmp_path / "base")
    make_model("gpt2").save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"the base has no tensor '.*query.weight'"):
        load_checkpoint(adapter, base=tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_checkpoint(tmp_path / "missing.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        load_checkpoint(tmp_path / "empty")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "IA3"}))
    with pytest.raises(ValueError, match="type IA3; only LORA"):
        load_checkpoint(adapter, base=tmp_path / "base")
    for name in ("broken.safetensors", "broken.pt"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(CorruptFileError, match=name):
            load_checkpoint(tmp_path / name)
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(CorruptFileError, match="holds no dict of tensors"):
        load_checkpoint(tmp_path / "list.pt")
    # A pickle that would run code is refused.
    torch.save({"w": torch.ones(1), "run": print}, tmp_path / "code.pt")
    with pytest.raises(CorruptFileError, match="not executed"):
        load_checkpoint(tmp_path / "code.pt")
