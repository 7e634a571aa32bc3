from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import bert_model, same, save_bert, token_task, toy_definition
from language_helpers import language_model, save_language_model, translation_tasks

from optuna_merge.definition import PosteriorSettings
from optuna_merge.finetuning import finetune
from optuna_merge.fitting import fit
from optuna_merge.models import LastLayers
from optuna_merge.models._adapter import add_lora
from optuna_merge.previews import PreviewSettings

peft = pytest.importorskip("peft")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_bert(tmp_path_factory.mktemp("bert"))


def tasks() -> Any:
    return token_task("one", 1), token_task("two", 2, classes=3)


def adapted(folder: str, **options: Any) -> Any:
    config = {"r": 2, "lora_alpha": 8, "target_modules": ["query", "value"]} | options
    return bert_model(folder, tasks(), trainable="all", adapter=peft.LoraConfig(**config))


def test_only_the_factors_b_and_heads_are_trained(folder: str) -> None:
    model = adapted(folder)
    assert len(model.shared_names()) == 3 * 2
    assert all(name.endswith("lora_B.default.weight") for name in model.shared_names())
    assert model.own_names("one") == ["heads.one.classifier.weight", "heads.one.classifier.bias"]
    # It starts as the pretrained body, and with the same factors A in every process.
    batch = tasks()[0].data("train")[[0, 1, 2]]
    plain = bert_model(folder, tasks(), trainable="all")
    torch.testing.assert_close(model(batch, "one"), plain(batch, "one"))
    assert model.describe() == adapted(folder).describe()
    before = torch.get_rng_state()
    assert adapted(folder).describe() == model.describe()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("options", [{"lora_alpha": 16}, {"use_rslora": True}])
def test_another_scaling_is_another_model(options: dict[str, Any], folder: str) -> None:
    described, other = adapted(folder).describe(), adapted(folder, **options).describe()
    assert described["hash"] == other["hash"], "no tensor tells"
    assert described != other


def test_frozen_parameters_stay_while_b_learns(folder: str) -> None:
    model = adapted(folder)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    assert any("lora_A" in name for name in frozen)
    definition = toy_definition(tasks(), model=model)
    finetune(model, definition.tasks, {"one": 1.0, "two": 0.0}, definition.finetuning)
    assert same(frozen, {n: p for n, p in model.named_parameters() if not p.requires_grad})
    assert all(bool(model.get_parameter(name).any()) for name in model.shared_names())


@pytest.mark.parametrize("family", ["isotropic", "diagonal"])
def test_a_merge_of_the_factors_is_the_merge_of_the_updates(
    family: Any, folder: str, tmp_path: Path
) -> None:
    model = adapted(folder)
    posterior = PosteriorSettings(family=family, examples=8, damping_examples=8, chunk_size=4)
    plain = PreviewSettings(anchor="none")
    definition = toy_definition(tasks(), model=model, posterior=posterior, preview=plain)
    fitted = fit(definition, tmp_path, progress=False)
    alone = fitted.previewer({"one": 1.0, "two": 0.0})
    assert alone.evaluations["one"] == fitted.runs["one"].evaluations["one"]
    assert fitted.previewer({"one": 0.4, "two": 0.6}).evaluations["two"].num_examples == 12
    layer = model.body.encoder.layer[1].attention.self.query
    updates = []
    for weights in ({"one": 1.0, "two": 0.0}, {"one": 0.0, "two": 1.0}, {"one": 0.4, "two": 0.6}):
        fitted.previewer.load(weights)
        updates.append(layer.get_delta_weight("default").clone())
    if family == "isotropic":
        torch.testing.assert_close(updates[2], 0.4 * updates[0] + 0.6 * updates[1])
    else:
        assert updates[2].abs().sum() > 0


@pytest.mark.parametrize("kind, modules", [("llama", ["q_proj", "v_proj"]), ("t5", ["q", "v"])])
def test_language_models_take_adapters(kind: str, modules: list[str], tmp_path: Path) -> None:
    translations = translation_tasks(kind, size=12)
    model = language_model(
        save_language_model(kind, tmp_path),
        translations,
        adapter=peft.LoraConfig(r=2, target_modules=modules),
    )
    assert all("lora_B" in name for name in model.shared_names())
    batch = translations[0].data("train")[[0, 1]]
    before = model.generate(batch, "same")
    plain = language_model(str(tmp_path), translations)
    assert torch.equal(before, plain.generate(batch, "same"))
    model.load({name: t + 5 for name, t in model.state().items()})
    assert not torch.equal(model(batch, "same"), plain(batch, "same"))


def test_adapters_of_chosen_layers(folder: str) -> None:
    model = adapted(folder, layers_to_transform=[2])
    assert {".".join(name.split(".")[:4]) for name in model.shared_names()} == {
        "body.encoder.layer.2"
    }


@pytest.mark.parametrize(
    "options, message",
    [
        ({"use_dora": True}, "use_dora=True: expected False"),
        ({"bias": "all"}, "bias='all': expected 'none'"),
        ({"lora_dropout": 0.1}, "lora_dropout=0.1: expected 0"),
        ({"modules_to_save": ["pooler"]}, "modules_to_save=['pooler']: expected None"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa': expected True"),
        ({"init_lora_weights": False}, "init_lora_weights=False: expected True"),
        (
            {"target_modules": ["word_embeddings"]},
            "adds 'embeddings.word_embeddings.lora_embedding_A.default', which is neither",
        ),
    ],
)
def test_adapters_that_are_more_than_b_are_refused(
    options: dict[str, Any], message: str, folder: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        adapted(folder, **options)


def test_adapters_exclude_another_choice_of_what_is_trained(folder: str) -> None:
    config = peft.LoraConfig(target_modules=["query"])
    with pytest.raises(ValueError, match=r"leave out trainable=LastLayers\(count=1\)"):
        bert_model(folder, tasks(), trainable=LastLayers(1), adapter=config)
    with pytest.raises(TypeError, match=r"must be a peft\.LoraConfig, got str"):
        add_lora(torch.nn.Linear(2, 2), "lora", 0, "all")
