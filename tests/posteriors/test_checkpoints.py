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
from optuna_merge.merging import merge, merge_into
from optuna_merge.posteriors import (
    IsotropicGaussian,
    load_checkpoint,
    save_posterior,
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
    if kind == "neox":  # untied, with an output layer that is called an embedding
        neox = t.GPTNeoXConfig(
            vocab_size=30,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
        )
        return t.GPTNeoXForCausalLM(neox)
    gpt2 = t.GPT2Config(
        vocab_size=30,
        n_positions=9,
        n_embd=8,
        n_layer=2,
        n_head=2,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=kind != "gpt2 untied",
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
        ("llama tied", {"target_modules": ["q_proj"]}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
        ("gpt2 untied", {"target_modules": ["c_attn", "wte"]}),
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


IDS = torch.arange(14).reshape(2, 7)
TIED = {"ensure_weight_tying": True}


def save_tied(
    folder: Path, kind: str, options: dict[str, Any], new_tokens: int = 0
) -> tuple[Any, Tensor]:
    """Save a model whose output layer is its embedding, and an adapter; return peft's logits.

    Returns:
        The base, as it was, and the logits of the adapted model, which peft has not merged: for
        its merge writes both updates into the one tensor.
    """
    base = make_model(kind)
    base.save_pretrained(folder / "base")
    model = type(base).from_pretrained(folder / "base")
    if new_tokens:
        model.resize_token_embeddings(30 + new_tokens)
        base.resize_token_embeddings(30 + new_tokens)
    torch.manual_seed(1)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, **options))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    adapted.save_pretrained(folder / "adapter")
    with torch.no_grad():
        return base.eval(), adapted.eval()(IDS).logits


def check_logits(model: Any, loaded: dict[str, Tensor], expected: Tensor) -> None:
    assert not model.load_state_dict(loaded, strict=False).unexpected_keys
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options", "new_tokens"),
    [
        ("llama tied", {"target_modules": ["q_proj"]}, 0),
        ("llama tied", {"target_modules": ["q_proj"]}, 3),  # both are saved, resized
        ("llama tied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, -1),
        ("llama tied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, -1),
        ("llama tied", {"target_modules": ["embed_tokens"], "use_rslora": True}, -1),
        ("llama tied", {"target_modules": ["q_proj", "lm_head"]}, -1),
        ("gpt2", {"target_modules": ["c_attn"]}, 0),
        ("gpt2", {"target_modules": ["c_attn"]}, 3),
    ],
)
def test_adapters_of_tied_models_that_leave_them_tied(
    tmp_path: Path, kind: str, options: dict[str, Any], new_tokens: int
) -> None:
    if new_tokens < 0:
        options, new_tokens = options | TIED, 0
    base, expected = save_tied(tmp_path, kind, options, new_tokens)
    before = load_checkpoint(tmp_path / "base")
    loaded = load_checkpoint(tmp_path / "adapter", base=tmp_path / "base")
    assert loaded.keys() == before.keys()
    with torch.no_grad():
        assert not torch.allclose(base(IDS).logits, expected, atol=1e-3)
    check_logits(base, loaded, expected)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama tied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
        ("llama tied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        (
            "llama tied",
            {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        ),
        ("llama tied", {"target_modules": ["embed_tokens"], "task_type": "CAUSAL_LM"}),
        ("llama tied", {"target_modules": ["lm_head"]}),
        ("llama tied", {"target_modules": ["lm_head", "embed_tokens"], "use_dora": True}),
        ("gpt2", {"target_modules": ["wte"]}),
        ("gpt2", {"target_modules": ["wte"], **TIED}),  # which PEFT doesn't follow here
    ],
)
def test_adapters_that_part_what_is_tied_need_a_base_with_both(
    tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    base, expected = save_tied(tmp_path, kind, options)
    match = r"'.*(embed_tokens|wte).weight' and .* are one tensor in the base \(tied\)"
    for path in (tmp_path / "base", tmp_path / "base" / "model.safetensors"):
        with pytest.raises(ValueError, match=match):
            load_checkpoint(tmp_path / "adapter", base=path)
    # What the message says to do.
    base.config.tie_word_embeddings = False
    base.lm_head.weight = nn.Parameter(base.lm_head.weight.detach().clone())
    base.save_pretrained(tmp_path / "untied")
    loaded = load_checkpoint(tmp_path / "adapter", base=tmp_path / "untied")
    check_logits(type(base).from_pretrained(tmp_path / "untied").eval(), loaded, expected)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_files_that_tell_of_their_ties(tmp_path: Path, file: str) -> None:
    from safetensors.torch import save_model

    options = {"target_modules": ["lm_head"]}
    base, _ = save_tied(tmp_path, "llama tied", options)
    folder = tmp_path / "other"
    folder.mkdir()
    if file == "pytorch_model.bin":
        torch.save(base.state_dict(), folder / file)
    else:
        save_model(base, str(folder / file))
    with pytest.raises(ValueError, match=r"are one tensor in the base \(tied\)"):
        load_checkpoint(tmp_path / "adapter", base=folder)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        # A classifier's configuration says "tied" too, but it has no output for every token.
        ("gpt2 classifier", "transformer.wte.weight"),
        # Here the output layer is called an embedding: it is "embed_out" in the file.
        ("neox", "gpt_neox.embed_in.weight"),
    ],
)
@pytest.mark.parametrize("with_config", [True, False])
def test_embeddings_that_are_not_tied(
    tmp_path: Path, kind: str, name: str, with_config: bool
) -> None:
    save_base(kind, tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    assert config["tie_word_embeddings"] is (kind == "gpt2 classifier")
    options = {"target_modules": [name.split(".")[1]]}
    expected = save_adapter(tmp_path / "adapter", tmp_path / "base", kind=kind, **options)
    if not with_config:
        (tmp_path / "base" / "config.json").unlink()
    before = load_checkpoint(tmp_path / "base")
    loaded = load_checkpoint(tmp_path / "adapter", base=tmp_path / "base")
    assert [key for key in before if not torch.equal(loaded[key], before[key])] == [name]
    torch.testing.assert_close(loaded[name], expected[name])


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
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    weights = [0.3, 0.7]
    with pytest.raises(ValueError, match=r"lora_A.* and .*lora_B.* differ from task 0's"):
        merge([IsotropicGaussian(one), IsotropicGaussian(two)], weights)
    shared = {k: one[k] if "lora_A" in k else v for k, v in two.items()}
    save_file(shared, folders[1] / "adapter_model.safetensors", {"format": "pt"})

    factors = merge([IsotropicGaussian(one), IsotropicGaussian(shared)], weights)
    merged = tmp_path / "merged"
    merged.mkdir()
    (merged / "adapter_config.json").write_text((folders[0] / "adapter_config.json").read_text())
    save_file(factors, merged / "adapter_model.safetensors", {"format": "pt"})
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


def same(loaded: Mapping[str, Tensor], model: nn.Module) -> bool:
    own = dict(model.named_parameters())
    return loaded.keys() == own.keys() and all(torch.equal(loaded[k], own[k]) for k in own)


def save_pickle(model: Any, folder: Path, sharded: bool = False) -> None:
    """As transformers saved before it had safetensors."""
    folder.mkdir(exist_ok=True)
    model.config.save_pretrained(folder)
    state = model.state_dict()
    if not sharded:
        torch.save(state, folder / "pytorch_model.bin")
        return
    names = sorted(state)
    files = {name: f"pytorch_model-{k % 2 + 1:05}-of-00002.bin" for k, name in enumerate(names)}
    for file in set(files.values()):
        torch.save({k: v for k, v in state.items() if files[k] == file}, folder / file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def test_of_a_folder_with_several_saves_the_same_is_read_as_by_transformers(
    tmp_path: Path,
) -> None:
    saves: dict[str, Any] = {
        "whole": lambda model, folder: model.save_pretrained(folder),
        "shards": lambda model, folder: model.save_pretrained(folder, max_shard_size="2KB"),
        "pickle": save_pickle,
        "pickles": lambda model, folder: save_pickle(model, folder, sharded=True),
    }
    models = {kind: make_model("bert") for kind in saves}
    for k, model in enumerate(models.values()):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(k)
    for kind, save in saves.items():
        save(models[kind], tmp_path / kind)
        assert same(load_checkpoint(tmp_path / kind), models[kind])
    for one in saves:
        for two in saves:
            both = tmp_path / f"{one} {two}"
            for kind in (one, two):
                shutil.copytree(tmp_path / kind, both, dirs_exist_ok=True)
            theirs = type(models[one]).from_pretrained(both)
            assert same(load_checkpoint(both), theirs), both
    # Saved again over shards: transformers takes the shards away, but not their index.
    models["shards"].save_pretrained(tmp_path / "again", max_shard_size="2KB")
    models["whole"].save_pretrained(tmp_path / "again")
    assert same(load_checkpoint(tmp_path / "again"), models["whole"])


def test_shards_and_tensors_that_an_index_names_must_be_there(tmp_path: Path) -> None:
    make_model("bert").save_pretrained(tmp_path, max_shard_size="2KB")
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    assert same(load_checkpoint(index), make_model("bert"))
    extra = {**content, "weight_map": {**content["weight_map"], "more.weight": "model-x"}}
    index.write_text(json.dumps(extra))
    with pytest.raises(FileNotFoundError, match=r"index.json names .* 1 are not there.* model-x"):
        load_checkpoint(tmp_path)
    first = sorted(tmp_path.glob("*.safetensors"))[0].name
    extra["weight_map"]["more.weight"] = first
    index.write_text(json.dumps(extra))
    with pytest.raises(CorruptFileError, match=rf"{first} holds 'more.weight', but no file does"):
        load_checkpoint(tmp_path)
    content["weight_map"]["more.weight"] = "../" + first
    index.write_text(json.dumps(content))
    with pytest.raises(CorruptFileError, match="a file outside its folder"):
        load_checkpoint(tmp_path)
    for broken in ("[]", "{", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'):
        index.write_text(broken)
        with pytest.raises(CorruptFileError, match="is not an index"):
            load_checkpoint(tmp_path)


def test_the_file_that_a_configuration_names_is_read_first(tmp_path: Path) -> None:
    model = make_model("bert")
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "best.safetensors")
    with pytest.raises(FileNotFoundError, match=r"has no model.safetensors.*best.safetensors"):
        load_checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    named = {**config, "transformers_weights": "best.safetensors"}
    (tmp_path / "config.json").write_text(json.dumps(named))
    assert same(load_checkpoint(tmp_path), type(model).from_pretrained(tmp_path))
    outside = {**config, "transformers_weights": "../best.safetensors"}
    (tmp_path / "config.json").write_text(json.dumps(outside))
    with pytest.raises(CorruptFileError, match="a file outside"):
        load_checkpoint(tmp_path)


def test_adapters_in_a_file_of_torch_save(tmp_path: Path, plain: Path) -> None:
    shutil.copytree(plain / "adapter", tmp_path / "adapter")
    expected = load_checkpoint(plain / "adapter", base=plain / "base")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    loaded = load_checkpoint(tmp_path / "adapter", base=plain / "base")
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    file.with_suffix(".bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks .*adapter_model.safetensors"):
        load_checkpoint(tmp_path / "adapter", base=plain / "base")


ADAPTERS: dict[str, Any] = {
    "LoRA": {"target_modules": ["query"]},
    "DoRA": {"target_modules": ["query"], "use_dora": True},
    "LoRA of an embedding": {"target_modules": ["word_embeddings"]},
    "LoHa": peft.LoHaConfig(target_modules=["query"]),
    "LoKr": peft.LoKrConfig(target_modules=["query"]),
    "IA3": peft.IA3Config(target_modules=["query"], feedforward_modules=[]),
    "VeRA": peft.VeraConfig(target_modules=["query"]),
    "norms": peft.LNTuningConfig(target_modules=["LayerNorm"]),
    "prompts": peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_s_file_is_no_model_s(tmp_path: Path, kind: str) -> None:
    options = ADAPTERS[kind]
    config = peft.LoraConfig(**options) if isinstance(options, dict) else options
    adapted = peft.get_peft_model(make_model("bert"), config)
    adapted.save_pretrained(tmp_path)
    for file in (tmp_path / "adapter_model.safetensors", tmp_path / "renamed.pt"):
        if file.suffix == ".pt":
            torch.save(load_file(tmp_path / "adapter_model.safetensors"), file)
        with pytest.raises(ValueError, match=r"adapter's tensors, for instance .* its folder"):
            load_checkpoint(file)
    if kind in ("LoRA", "DoRA"):  # a model that was not merged with its adapter
        state = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
        save_file(state, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=r"merge_and_unload"):
            load_checkpoint(tmp_path / "model.safetensors")


def test_factors_of_which_two_differ_are_not_merged(tmp_path: Path) -> None:
    make_model("bert").save_pretrained(tmp_path / "base")
    adapters = []
    for seed in range(2):
        save_adapter(tmp_path / str(seed), tmp_path / "base", seed, target_modules=["query"])
        adapters.append(load_file(tmp_path / str(seed) / "adapter_model.safetensors"))
    one, two = adapters

    def merged(*means: dict[str, Tensor], weights: Any = (0.4, 0.6)) -> dict[str, Tensor]:
        return merge([IsotropicGaussian(mean) for mean in means], weights)

    with pytest.raises(
        ValueError, match=r"task 1: '.*lora_A.weight' and '.*lora_B.weight' differ"
    ):
        merged(one, two)
    # One task alone is not averaged, nor is one of weight zero.
    assert torch.equal(
        next(iter(merged(one, two, weights=(0, 1)).values())), next(iter(two.values()))
    )
    # A product is linear in each of its factors.
    for part in ("lora_A", "lora_B"):
        shared = {k: one[k] if part in k else v for k, v in two.items()}
        result = merged(one, shared)
        for name in one:
            if "lora_A" in name:
                other = name.replace("lora_A", "lora_B")
                expected = 0.4 * one[other] @ one[name] + 0.6 * shared[other] @ shared[name]
                torch.testing.assert_close(result[other] @ result[name], expected)
    # DoRA divides by a norm in which the factors are: its magnitudes alone may differ.
    magnitudes = {f"{k.split('.lora_')[0]}.lora_magnitude_vector": torch.ones(8) for k in one}
    other = {name: 2 * tensor for name, tensor in magnitudes.items()}
    assert len(merged({**one, **magnitudes}, {**one, **other})) == len(one) + len(magnitudes)
    shared = {k: one[k] if "lora_A" in k else v for k, v in two.items()}
    with pytest.raises(ValueError, match=r"'.*lora_B.weight' differ"):
        merged({**one, **magnitudes}, {**shared, **magnitudes})


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    ordinary = {"norm.weight": torch.ones(8)}
    byte = torch.ones(8, 4, dtype=torch.uint8)
    kinds: dict[str, dict[str, Tensor]] = {
        "fp8": {"l.weight": torch.ones(8, 8).to(torch.float8_e4m3fn), "l.scale": torch.ones(8)},
        "fp8 of another kind": {"l.weight": torch.ones(8, 8).to(torch.float8_e5m2)},
        "int8": {"l.weight": byte.to(torch.int8), "l.SCB": torch.ones(8)},
        "gptq": {"l.qweight": byte.int(), "l.qzeros": byte.int(), "l.scales": torch.ones(8, 4)},
        "bitsandbytes": {"l.weight": byte, "l.weight.absmax": torch.ones(8)},
        "bitsandbytes' state": {"l.weight.quant_map": torch.ones(16)},
        "compressed": {"l.weight_packed": byte.int(), "l.weight_scale": torch.ones(8)},
        "quanto": {"l.weight._data": byte.to(torch.int8), "l.weight._scale": torch.ones(8)},
        "mxfp4": {"experts.down_proj_blocks": byte, "experts.down_proj_scales": byte.clone()},
    }
    for kind, tensors in kinds.items():
        torch.save({**ordinary, **tensors}, tmp_path / "it.pt")
        save_file({**ordinary, **tensors}, tmp_path / "it.safetensors")
        for file in ("it.pt", "it.safetensors"):
            with pytest.raises(
                ValueError, match=rf"{file}: '.*' is .*: quantised.*dequantise"
            ) as e:
                load_checkpoint(tmp_path / file)
            assert any(name in str(e.value) for name in tensors), kind
    quantised = torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)
    torch.save({**ordinary, "l.weight": quantised}, tmp_path / "it.pt")
    with pytest.raises(ValueError, match=r"'l.weight' is qint8: quantised"):
        load_checkpoint(tmp_path / "it.pt")
    (tmp_path / "it.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"it.gguf is a file of llama.cpp: quantised"):
        load_checkpoint(tmp_path / "it.gguf")
    with pytest.raises(ValueError, match=r"mean 'l' is float8_e4m3fn; quantised"):
        merge([IsotropicGaussian({"l": torch.ones(2).to(torch.float8_e4m3fn)})], [1])


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"text_config": {"quantization_config": {"quant_method": "awq"}}},
        {"compression_config": {"format": "int-quantized"}},
    ],
)
def test_folders_that_say_that_they_are_quantised(tmp_path: Path, config: dict[str, Any]) -> None:
    save_file({"l.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config.json has a .*: quantised weights.*dequantise"):
        load_checkpoint(tmp_path)


def test_buffers_of_integers_are_not_quantised_weights(tmp_path: Path) -> None:
    weight = torch.randn(4, 4)
    tensors = {
        "l.weight": weight,
        "norm.num_batches_tracked": torch.tensor(3),
        "embeddings.position_ids": torch.arange(6).reshape(1, 6),
        "attn.relative_position_index": torch.zeros(4, 4, dtype=torch.int64),
        "h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8),
        "attn.mask": torch.ones(4, 4, dtype=torch.bool),
        "rotary.freqs": torch.ones(4, dtype=torch.complex64),
    }
    save_file(tensors, tmp_path / "it.safetensors")
    loaded = load_checkpoint(tmp_path / "it.safetensors")
    assert loaded.keys() == {"l.weight"}
    assert torch.equal(loaded["l.weight"], weight)


def test_prefixes_of_wrappers_are_named(tmp_path: Path, plain: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    wrapped: dict[str, nn.Module] = {
        "_orig_mod.": torch.compile(net),  # type: ignore[dict-item]
        "module.": nn.DataParallel(net),
    }
    for prefix, module in wrapped.items():
        torch.save(module.state_dict(), tmp_path / "wrapped.pt")
        mean = load_checkpoint(tmp_path / "wrapped.pt")
        assert mean.keys() == {f"{prefix}0.weight", f"{prefix}0.bias"}
        posteriors = [IsotropicGaussian(dict(net.state_dict())), IsotropicGaussian(mean)]
        with pytest.raises(ValueError, match=rf"lacks .* there is '{prefix}0.bias'.*'{prefix}'"):
            merge(posteriors, [0.5, 0.5])
        with pytest.raises(ValueError, match=rf"has no '{prefix}0.*there is '0.*names="):
            merge_into(net, posteriors[1:], [1])
        merge_into(net, posteriors[1:], [1], names={k: k.removeprefix(prefix) for k in mean})
    # An adapter finds its place in a base whose names are wrapped.
    base = load_checkpoint(plain / "base")
    save_file({f"_orig_mod.{k}": v for k, v in base.items()}, tmp_path / "base.safetensors")
    expected = load_checkpoint(plain / "adapter", base=plain / "base")
    loaded = load_checkpoint(plain / "adapter", base=tmp_path / "base.safetensors")
    assert loaded.keys() == {f"_orig_mod.{k}" for k in expected}
    assert all(torch.equal(loaded[f"_orig_mod.{k}"], v) for k, v in expected.items())


def test_posteriors_are_no_checkpoints(tmp_path: Path) -> None:
    save_posterior(IsotropicGaussian({"w": torch.ones(2)}), tmp_path / "posterior")
    with pytest.raises(ValueError, match="is a posterior: read it with load_posterior"):
        load_checkpoint(tmp_path / "posterior")


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
    with pytest.raises(ValueError, match=r"the base .* is an adapter itself; give a whole"):
        load_checkpoint(adapter, base=adapter)
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
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(CorruptFileError, match=r"adapter_config.json is no JSON"):
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
