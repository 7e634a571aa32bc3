"""The curvature of a Trainer's own loss: against the Hessian where labels don't change it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trainer_helpers import MakeTrainer, bert, llama, pad
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import SequenceClassifierOutput

from optuna_merge.trainers._labels import (
    label_tokens,
    shifts_labels,
    squared_gradients,
    terms,
    with_drawn_labels,
)


class Linear(nn.Module):
    """A linear model with a loss of its own, as transformers' models have it."""

    def __init__(self, outputs: int, kind: str) -> None:
        super().__init__()
        self.layer = nn.Linear(3, outputs, bias=False)
        self.config = type("Config", (), {"problem_type": kind})()

    def forward(self, x: Tensor, labels: Tensor) -> SequenceClassifierOutput:
        logits = self.layer(x)
        if self.config.problem_type == "regression":
            loss = (logits - labels).square().mean()
        elif labels.is_floating_point():
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels)
        else:
            loss = nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


@pytest.mark.parametrize("kind", ["classes", "regression", "multi_label_classification"])
def test_it_is_the_diagonal_of_the_hessian_of_the_averaged_loss(kind: str) -> None:
    torch.manual_seed(0)
    model = Linear(2, kind)
    x = torch.randn(4, 3)
    labels = {
        "classes": torch.randint(0, 2, (4,)),
        "regression": torch.randn(4, 2),
        "multi_label_classification": torch.randint(0, 2, (4, 2)).float(),
    }[kind]
    batches = [{"x": x[i : i + 1], "labels": labels[i : i + 1]} for i in range(4)] * 800
    trainer = MakeTrainer({}, lambda: model)("unused")
    found = squared_gradients(
        trainer, batches, ["layer.weight"], seed=0, shifts=False, per_token=False
    )["layer.weight"]

    def loss(weight: Tensor) -> Tensor:
        outputs = torch.func.functional_call(model, {"layer.weight": weight}, (x, labels))
        return outputs.loss

    hessian = torch.autograd.functional.hessian(loss, model.layer.weight.detach())
    expected = hessian.reshape(6, 6).diagonal().reshape(2, 3)
    torch.testing.assert_close(found, expected, rtol=0.12, atol=1e-3)


def test_it_is_averaged_over_the_tokens_of_long_and_short_examples() -> None:
    """Of an output layer it is known: the mean over tokens of h_j^2 p_c (1 - p_c)."""
    torch.manual_seed(0)
    model = llama()
    trainer = MakeTrainer({}, lambda: model)("unused")
    name = "lm_head.weight"
    examples = [[5, 6], [7, 8, 9, 10, 5, 6, 7]]
    batches = [
        pad([{"input_ids": ids, "labels": [-100, *ids[1:]], "attention_mask": [1] * len(ids)}])
        for ids in examples
    ]
    found = squared_gradients(trainer, batches * 400, [name], seed=0, shifts=True, per_token=True)[
        name
    ]
    expected = []
    with torch.no_grad():
        for batch in batches:
            hidden = model.model(batch["input_ids"]).last_hidden_state[0, :-1]
            p = model.lm_head(hidden).softmax(-1)
            expected += [torch.outer(q * (1 - q), h.square()) for q, h in zip(p, hidden)]
    assert len(expected) == 1 + 6
    mean = torch.stack(expected).mean(0)
    assert (found - mean).norm() < 0.1 * mean.norm()


def test_labels_of_a_causal_model_are_drawn_for_the_next_position() -> None:
    model = llama()
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[8] = 50 * torch.ones(16)
        model.model.norm.weight.copy_(torch.ones(16))
    batch = pad([{"input_ids": [5, 6, 7], "labels": [-100, -100, 7], "attention_mask": [1] * 3}])
    assert shifts_labels(model) and not shifts_labels(bert())
    drawn = with_drawn_labels(model, batch, torch.Generator(), shifts=True)["labels"]
    logits = model(**batch).logits[0, 1]
    assert drawn[0].tolist() == [-100, -100, int(logits.argmax())]


def test_labels_of_an_encoder_decoder_are_drawn_for_what_its_decoder_has_read() -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    ids = {"vocab_size": 12, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
    model = T5ForConditionalGeneration(T5Config(**ids, **sizes)).eval()
    with torch.no_grad():
        model.shared.weight.mul_(20)  # draws are nearly sure
    assert not shifts_labels(model)
    batch = {"input_ids": torch.tensor([[5, 6]]), "labels": torch.tensor([[7, 8, 9, -100]])}
    drawn = with_drawn_labels(model, batch, torch.Generator().manual_seed(0), shifts=False)
    assert drawn["decoder_input_ids"].tolist() == [[0, 7, 8, 9]], "of the data"
    sure = model(**batch).logits.argmax(-1)[0, :3].tolist()
    assert drawn["labels"].tolist() == [[*sure, -100]] and sure != [7, 8, 9]
    torch.testing.assert_close(model(**drawn).logits, model(**batch).logits)


def test_tokens_are_counted_as_the_trainer_counts_them() -> None:
    batch: dict[str, Any] = {"labels": torch.tensor([[5, 6, -100], [-100, 6, 7]])}
    counted = label_tokens(batch, shifts=True)
    assert counted is not None and counted.tolist() == [1, 2]
    trainer = MakeTrainer({}, llama)("unused")
    _, count = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    assert count == 3
    assert label_tokens({"labels": torch.tensor([1, 0])}, shifts=False) is None
    assert terms({"labels": torch.tensor([1])}, shifts=False) == 1
    assert terms({"labels": torch.zeros(1, 3)}, shifts=False) == 3


def test_no_labels_at_all() -> None:
    trainer = MakeTrainer({}, llama)("unused")
    with pytest.raises(ValueError, match="no examples with labels"):
        squared_gradients(trainer, [], ["lm_head.weight"], seed=0, shifts=True, per_token=True)
