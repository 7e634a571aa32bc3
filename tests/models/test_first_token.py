"""The last layer for the first token alone: the same outputs and gradients as the whole layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from helpers import save_bert
from transformers import AutoConfig, AutoModelForSequenceClassification

from optuna_merge.models import LastLayers, cache_trunk, from_transformers
from optuna_merge.models._transformers import _READ_AT_FIRST_TOKEN, end_at_first_token
from optuna_merge.tasks import Task, TensorData

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 24,
    "num_labels": 3,
}


def network(model_type: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **SIZES)
    if model_type.startswith("deberta"):  # as the published models have it
        config.relative_attention, config.pos_att_type = True, ["c2p", "p2c"]
    made = AutoModelForSequenceClassification.from_config(config).double().eval()
    with torch.no_grad():  # from_config's values are so small that differences would be, too
        for parameter in made.parameters():
            parameter.mul_(8)
    return made


def batch(tokens: int = 9) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    mask = torch.ones(5, tokens, dtype=torch.long)
    mask[1, 6:] = mask[3, 2:] = 0
    return {"input_ids": torch.randint(3, 50, (5, tokens)), "attention_mask": mask}


@pytest.mark.parametrize("model_type", sorted(_READ_AT_FIRST_TOKEN))
def test_outputs_and_gradients_are_those_of_the_whole_layer(model_type: str) -> None:
    whole, first = network(model_type), network(model_type)
    assert end_at_first_token(first.base_model, model_type)
    found = []
    for made in (whole, first):
        logits = made(**batch()).logits
        logits.square().sum().backward()
        found.append((logits, {n: p.grad for n, p in made.named_parameters()}))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-10, atol=1e-12)
    assert found[0][0].abs().max() > 0.01
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-8, atol=1e-12, msg=name)
    hidden = first.base_model(**batch()).last_hidden_state
    assert hidden.shape[1] == 1


@pytest.mark.parametrize("model_type", ["distilbert", "modernbert", "albert"])
def test_other_models_are_left_alone(model_type: str) -> None:
    config = AutoConfig.for_model(model_type)
    with torch.device("meta"):
        made = transformers.AutoModel.from_config(config)
    assert not end_at_first_token(made, model_type)
    assert not any(module._forward_pre_hooks for module in made.modules())


def test_the_multitask_model_ends_at_it_also_behind_a_cached_trunk(tmp_path: Any) -> None:
    path = save_bert(tmp_path / "bert")
    data = TensorData({**batch(), "labels": torch.tensor([0, 1, 0, 1, 1])})
    task = Task("a", data, data, 2)
    model = from_transformers(str(path), [task], trainable=LastLayers(1))
    model.eval()
    plain = AutoModelForSequenceClassification.from_pretrained(path, num_labels=2).eval()
    plain.classifier.load_state_dict(model.heads["a"].classifier.state_dict())
    plain.base_model.load_state_dict(model.body.state_dict())
    (cached,) = cache_trunk(model, [task])
    rows = list(range(5))
    with torch.inference_mode():
        wanted = plain(**batch()).logits
        torch.testing.assert_close(model(data[rows], "a"), wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            model(cached.data("train")[rows], "a"), wanted, rtol=1e-5, atol=1e-6
        )
    assert model.body(**batch()).last_hidden_state.shape[1] == 1
