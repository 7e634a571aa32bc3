from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from optuna_merge.exceptions import CorruptFileError
from optuna_merge.merging import merge
from optuna_merge.posteriors import (
    IsotropicGaussian,
    load_checkpoint,
    load_lora_factors,
    squared_gradients,
)

peft = pytest.importorskip("peft")


class ConvNet(nn.Module):
    """Convolutions, a batch norm and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, (3, 2))
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)


def make_model(kind: str) -> Any:
    import transformers as t

    torch.manual_seed(0)
    if kind == "conv":
        return ConvNet()
    if kind == "bert":
        bert = t.BertConfig(
            vocab_size=30,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
        )
        return t.BertForSequenceClassification(bert)
    if kind.startswith("llama"):
        llama = t.LlamaConfig(
            vocab_size=30,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=16,
            tie_word_embeddings=kind == "llama tied",
            bos_token_id=1,
            eos_token_id=2,
        )
        return t.LlamaForCausalLM(llama)
    gpt2 = t.GPT2Config(
        vocab_size=30, n_positions=9, n_embd=8, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2
    )
    if kind == "gpt2 classifier":
        return t.GPT2ForSequenceClassification(gpt2)
    return t.GPT2LMHeadModel(gpt2)


def save_base(kind: str, folder: Path) -> Path:
    """Save a model; return the path that `load_checkpoint` takes."""
    model = make_model(kind)
    if kind != "conv":
        model.save_pretrained(folder)
        return folder
    file = folder.with_suffix(".safetensors")
    save_file(model.state_dict(), file)
    return file


def save_adapter(
    folder: Path, base: Path, seed: int = 0, kind: str = "bert", **options: Any
) -> dict[str, Tensor]:
    """Save a random adapter of a saved base; return what peft itself makes of both."""
    model = make_model(kind)
    if kind != "conv":
        model = type(model).from_pretrained(base)
    torch.manual_seed(seed)
    settings = {"r": 2, "lora_alpha": 5, "init_lora_weights": False, **options}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "modules_to_save" in name or (parameter.requires_grad and name.endswith("bias")):
                parameter.normal_()
            if "magnitude" in name:  # after training they are the weights' norms no more
                parameter.mul_(1 + torch.rand_like(parameter))
    adapted.save_pretrained(folder)
    return dict(adapted.merge_and_unload().state_dict())


def check_against_peft(folder: Path, kind: str, options: dict[str, Any]) -> None:
    base_path = save_base(kind, folder / "base")
    expected = save_adapter(folder / "adapter", base_path, kind=kind, **options)
    base = load_checkpoint(base_path)
    loaded = load_checkpoint(folder / "adapter", base=base_path)
    assert loaded.keys() == base.keys()
    assert any(not torch.equal(loaded[name], base[name]) for name in base)
    for name, tensor in loaded.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("bert", {"target_modules": ["query", "dense"]}),
        ("bert", {"target_modules": ["query"], "use_rslora": True}),
        ("bert", {"target_modules": ["query", "value"], "rank_pattern": {"value": 3}}),
        ("bert", {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
        ("bert", {"target_modules": ["query"], "bias": "all"}),
        ("bert", {"target_modules": ["query"], "bias": "lora_only"}),
        ("bert", {"target_modules": ["query"], "layers_to_transform": [1]}),
        ("bert", {"target_modules": "all-linear", "exclude_modules": ["classifier"]}),
        ("bert", {"target_modules": ["word_embeddings"]}),
        ("llama", {"target_modules": "all-linear"}),
        ("llama", {"target_modules": ["embed_tokens", "lm_head"], "use_rslora": True}),
        ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}),
        ("llama tied", {"target_modules": ["q_proj", "embed_tokens"]}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
        ("gpt2", {"target_modules": ["c_attn", "wte"]}),
        ("gpt2 classifier", {"target_modules": ["c_attn", "score"]}),
        ("conv", {"target_modules": ["conv", "head"]}),
        ("conv", {"target_modules": ["conv"], "modules_to_save": ["norm", "head"]}),
    ],
)
def test_lora_adapters_are_what_peft_makes_of_them(
    tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    check_against_peft(tmp_path, kind, options)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(
    "patterns",
    [
        {"query": 3},
        {r"^bert\.encoder\.layer\.0\.attention\.self\.query": 3, "query": 7},
        {"layer.0.attention.self.(query|value)": 3},
        {"encoder": 3, "ery": 9},  # no module is named so
    ],
)
def test_alphas_and_ranks_by_layer(tmp_path: Path, patterns: dict[str, int], rslora: bool) -> None:
    options = {
        "target_modules": ["query", "value"],
        "alpha_pattern": patterns,
        "rank_pattern": {"layer.1.attention.self.query": 4},
        "use_rslora": rslora,
    }
    check_against_peft(tmp_path, "bert", options)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("bert", {"target_modules": ["query", "dense"], "use_rslora": True}),
        ("bert", {"target_modules": ["word_embeddings"]}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj"]}),
        ("conv", {"target_modules": ["conv", "head"]}),
    ],
)
def test_dora_adapters_are_what_peft_makes_of_them(
    tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    check_against_peft(tmp_path, kind, {**options, "use_dora": True})
    with pytest.raises(ValueError, match="not linear in B"):
        load_lora_factors([tmp_path / "adapter"])


def test_weights_kept_in_another_precision_do_not_undo_the_update(tmp_path: Path) -> None:
    # Safetensors files are ordered by precision before they are by name.
    save_base("llama", tmp_path / "base")
    options = {"target_modules": ["embed_tokens", "lm_head"]}
    expected = save_adapter(tmp_path / "adapter", tmp_path / "base", kind="llama", **options)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    assert any("base_layer" in name for name in tensors)
    save_file({k: v.double() if "base_layer" in k else v for k, v in tensors.items()}, file)
    loaded = load_checkpoint(tmp_path / "adapter", base=tmp_path / "base")
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        torch.testing.assert_close(loaded[name].float(), expected[name])


def test_square_weights_of_unknown_orientation_are_refused(tmp_path: Path) -> None:
    save_base("gpt2 classifier", tmp_path / "base")
    options = {"target_modules": ["c_attn", "c_proj", "score"]}
    save_adapter(tmp_path / "adapter", tmp_path / "base", kind="gpt2 classifier", **options)
    with pytest.raises(ValueError, match=r"square weight 'transformer.*c_proj.weight' it can't"):
        load_checkpoint(tmp_path / "adapter", base=tmp_path / "base")


def change_config(adapter: Path, **options: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **options}))


REFUSED: dict[str, Any] = {
    "alora_invocation_tokens": [1],
    "arrow_config": {"top_k": 2},
    "kasa_config": {"beta": 1e-4},
    "layer_replication": [[0, 2]],
    "lora_bias": True,
    "megatron_config": {"a": 1},
    "monteclora_config": {"a": 1},
    "target_parameters": ["a"],
    "trainable_token_indices": [1],
    "use_bdlora": {"nblocks": 2},
    "use_qalora": True,
    "velora_config": {"scale": 1.0},
}
STARTS = ("corda", "loftq", "lora_ga", "olora", "pissa", "pissa_niter_4")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and an adapter."""
    folder = tmp_path_factory.mktemp("plain")
    save_base("bert", folder / "base")
    save_adapter(folder / "adapter", folder / "base", target_modules=["query"])
    return folder


@pytest.mark.parametrize(
    ("option", "value"),
    [*REFUSED.items(), *(("init_lora_weights", start) for start in STARTS)],
)
def test_other_adapters_are_refused(
    tmp_path: Path, plain: Path, option: str, value: object
) -> None:
    shutil.copytree(plain / "adapter", tmp_path / "adapter")
    change_config(tmp_path / "adapter", **{option: value})
    with pytest.raises(ValueError, match=f"{option}.* is not supported"):
        load_checkpoint(tmp_path / "adapter", base=plain / "base")


def test_every_option_of_peft_is_taken_care_of() -> None:
    followed = {
        "alpha_pattern", "bias", "fan_in_fan_out", "init_lora_weights", "lora_alpha",
        "modules_to_save", "peft_type", "r", "rank_pattern", "use_dora", "use_rslora",
    }  # fmt: skip
    # Where the factors are, how they started, what happens in training, and where all came from.
    no_matter = {
        "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying",
        "eva_config", "exclude_modules", "inference_mode", "layers_pattern",
        "layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config",
        "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config",
        "target_modules", "task_type",
    }  # fmt: skip
    options = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert options <= followed | no_matter | REFUSED.keys()


def test_an_adapter_that_changed_its_base_and_was_converted_is_loaded(tmp_path: Path) -> None:
    base = save_base("bert", tmp_path / "base")
    model = make_model("bert").from_pretrained(base)
    settings = peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights="pissa")
    adapted = peft.get_peft_model(model, settings)
    adapted.peft_config["default"].init_lora_weights = True  # what peft's guide says to do
    adapted.save_pretrained(tmp_path / "start")
    adapted.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    adapted.save_pretrained(
        tmp_path / "adapter", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    loaded = load_checkpoint(tmp_path / "adapter", base=base)
    expected = adapted.merge_and_unload().state_dict()
    for name, tensor in loaded.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-5, msg=name)


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


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama tied"])
def test_folders_sharded_or_not_and_single_files(tmp_path: Path, kind: str) -> None:
    model = make_model(kind)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="2KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    whole, shards = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "shards")
    # Of tied embeddings and heads, only the embedding.
    assert whole.keys() == shards.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(whole[name], shards[name]) for name in whole)
    assert all(torch.equal(whole[name], own) for name, own in model.named_parameters())
    single = load_checkpoint(tmp_path / "whole" / "model.safetensors")
    assert single.keys() == whole.keys()


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama tied"])
def test_a_checkpoint_s_curvature_is_estimated_from_a_loader(tmp_path: Path, kind: str) -> None:
    make_model(kind).save_pretrained(tmp_path)
    model = type(make_model(kind)).from_pretrained(tmp_path).eval()
    mean = load_checkpoint(tmp_path)
    parameters = dict(model.named_parameters())

    def predict(parameters: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits: Tensor = functional_call(model, dict(parameters), kwargs=inputs).logits
        return logits if kind == "bert" else logits[:, -1]

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(outputs, labels, reduction="none")

    tokens = torch.randint(3, 30, (6, 5), generator=torch.Generator().manual_seed(0))
    rows = [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row[0] % 2}
        for row in tokens
    ]
    found = squared_gradients(predict, mean, DataLoader(rows, batch_size=4), loss=loss)
    expected = {name: torch.zeros_like(tensor) for name, tensor in mean.items()}
    for row in rows:
        model.zero_grad()
        one = {name: column.unsqueeze(0) for name, column in row.items()}
        loss(predict(parameters, one), one["labels"]).sum().backward()
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                expected[name] += parameter.grad.square() / len(rows)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-8, rtol=1e-4, msg=name)
    assert all(own is parameters[name] for name, own in model.named_parameters())


def test_timm_checkpoints_and_tied_tensors(tmp_path: Path) -> None:
    import timm

    net = timm.create_model("resnet10t", num_classes=2)
    torch.save({"state_dict": net.state_dict(), "epoch": 3}, tmp_path / "timm.pth.tar")
    loaded = load_checkpoint(tmp_path / "timm.pth.tar")
    # Parameters only: neither counters nor running statistics of batch norms.
    assert loaded.keys() == dict(net.named_parameters()).keys()
    save_file(net.state_dict(), tmp_path / "model.safetensors")  # as timm's are on the hub
    again = load_checkpoint(tmp_path)
    assert again.keys() == loaded.keys()
    assert all(torch.equal(again[name], loaded[name]) for name in loaded)
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
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    for part, without in (("A", "lora_A"), ("B", "lora_B")):
        save_file({k: v for k, v in tensors.items() if without not in k}, file)
        with pytest.raises(CorruptFileError, match=f"has no factor {part}"):
            load_checkpoint(adapter, base=tmp_path / "base")
    save_file({**tensors, "base_model.model.bert.lora_E": torch.ones(1)}, file)
    with pytest.raises(ValueError, match=r"'base_model.model.bert.lora_E' is neither a factor"):
        load_checkpoint(adapter, base=tmp_path / "base")
    save_file({k: v[:, :-1].clone() if "_A" in k else v for k, v in tensors.items()}, file)
    with pytest.raises(ValueError, match=r"is of 8 outputs and 7 inputs, but .* shape \(8, 8\)"):
        load_checkpoint(adapter, base=tmp_path / "base")
    save_file(tensors, file)
    change_config(adapter, use_dora=True)
    with pytest.raises(CorruptFileError, match="has no magnitudes"):
        load_checkpoint(adapter, base=tmp_path / "base")
    change_config(adapter, peft_type="IA3")
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
