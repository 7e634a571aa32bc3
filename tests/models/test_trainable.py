from __future__ import annotations

import re
from typing import Any

import pytest
from helpers import save_bert, tiny_vit
from torch import nn

from optuna_merge.models import LastLayers, Matching
from optuna_merge.models._trainable import find_layers, trainable_names


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    from transformers import BertModel

    return BertModel.from_pretrained(save_bert(tmp_path_factory.mktemp("bert")))


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    body = tiny_vit()
    body.reset_classifier(0)
    return body


def parts(names: list[str], depth: int) -> set[str]:
    return {".".join(name.split(".")[:depth]) for name in names}


def test_all_are_all(bert: nn.Module) -> None:
    assert trainable_names(bert, "all") == [name for name, _ in bert.named_parameters()]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_the_last_layers_and_what_is_behind_them(
    count: int, bert: nn.Module, vit: nn.Module
) -> None:
    for body, prefix, behind in [(bert, "encoder.layer", "pooler."), (vit, "blocks", "norm.")]:
        layers = tuple(f"{prefix}.{index}." for index in range(3 - count, 3))
        expected = [
            name for name, _ in body.named_parameters() if name.startswith((*layers, behind))
        ]
        assert trainable_names(body, LastLayers(count)) == expected
    chosen = trainable_names(bert, LastLayers(count))
    assert parts(chosen, 1) == ({"encoder", "pooler"} if count else {"pooler"})


def test_layers_are_the_longest_list_of_one_class(bert: nn.Module, vit: nn.Module) -> None:
    assert find_layers(bert)[0] == "encoder.layer"
    assert find_layers(vit)[0] == "blocks"


def test_names_that_only_contain_the_list_s_name_are_no_layers() -> None:
    body = nn.ModuleDict(
        {
            "other": nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(1, 1)])}),
            "layers": nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)]),
            "norm": nn.LayerNorm(1),
        }
    )
    assert parts(trainable_names(body, LastLayers(1)), 2) == {
        "layers.1",
        "norm.weight",
        "norm.bias",
    }


def test_the_body_itself_may_be_the_list() -> None:
    body = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    assert trainable_names(body, LastLayers(2)) == ["1.weight", "1.bias", "2.weight", "2.bias"]


def test_a_pattern_chooses_by_name(bert: nn.Module) -> None:
    chosen = trainable_names(bert, Matching(r"layer\.[02]\..*query\.weight$"))
    assert chosen == [f"encoder.layer.{i}.attention.self.query.weight" for i in (0, 2)]


@pytest.mark.parametrize(
    "trainable, error, message",
    [
        (LastLayers(4), ValueError, "LastLayers(4): BertModel has 3 layers"),
        (LastLayers(-1), ValueError, "LastLayers(-1): BertModel has 3 layers"),
        (Matching("lora"), ValueError, "no parameter of BertModel matches 'lora'; names look"),
        ("last", TypeError, "trainable must be 'all', LastLayers or Matching, got 'last'"),
    ],
)
def test_bad_choices_are_named(
    trainable: Any, error: type[Exception], message: str, bert: nn.Module
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        trainable_names(bert, trainable)


def test_a_body_without_layers_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"no list of layers found in Linear; choose .* Matching"):
        trainable_names(nn.Linear(1, 1), LastLayers(1))
