from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from optuna_merge.posteriors import categorical_labels, gaussian_labels, squared_gradients


def loss(outputs: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(outputs, labels, reduction="none")


def linear(params: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
    return batch["x"] @ params["w"].T + params["b"]


def data(rows: int, classes: int = 3) -> dict[str, Tensor]:
    return {"x": torch.randn(rows, 4), "labels": torch.arange(rows) % classes}


def example_by_example(predict, params, batch) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
    params = {name: tensor.detach().requires_grad_() for name, tensor in params.items()}
    total = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
    rows = len(batch["labels"])
    for i in range(rows):
        one = {key: value[i : i + 1] for key, value in batch.items()}
        gradients = torch.autograd.grad(
            loss(predict(params, one), one["labels"]).sum(), list(params.values())
        )
        for name, gradient in zip(params, gradients):
            total[name] += gradient**2 / rows
    return total


@pytest.mark.parametrize("chunk_size", [1, 3, 32])
def test_equals_the_mean_of_squared_example_gradients(chunk_size: int) -> None:
    torch.manual_seed(0)
    params = {"w": torch.randn(3, 4), "b": torch.randn(3)}
    batch = data(10)
    batches = [{k: v[:7] for k, v in batch.items()}, {k: v[7:] for k, v in batch.items()}]
    estimate = squared_gradients(linear, params, batches, loss=loss, chunk_size=chunk_size)
    expected = example_by_example(linear, params, batch)
    for name in params:
        torch.testing.assert_close(estimate[name], expected[name])


def test_sampled_labels_give_the_fisher_diagonal_not_the_data_s() -> None:
    torch.manual_seed(1)
    params = {"w": torch.randn(3, 4) * 0.3, "b": torch.zeros(3)}
    x = torch.randn(2, 4)
    repeated = {"x": x.repeat(20_000, 1), "labels": torch.zeros(40_000, dtype=torch.long)}
    generator = torch.Generator().manual_seed(0)
    options = {"loss": loss, "chunk_size": 4096}
    estimate = squared_gradients(
        linear,
        params,
        [repeated],
        sample_labels=categorical_labels,
        generator=generator,
        **options,
    )
    p = linear(params, {"x": x}).softmax(-1)
    fisher = torch.einsum("nc,nd->cd", p * (1 - p), x**2) / 2
    torch.testing.assert_close(estimate["w"], fisher, rtol=0.05, atol=2e-3)
    empirical = squared_gradients(linear, params, [repeated], **options)
    assert (empirical["w"] - fisher).abs().max() > 0.05

    generator.manual_seed(0)
    again = squared_gradients(
        linear,
        params,
        [repeated],
        sample_labels=categorical_labels,
        generator=generator,
        **options,
    )
    assert torch.equal(again["w"], estimate["w"])


def test_gaussian_labels_give_the_gauss_newton_diagonal() -> None:
    torch.manual_seed(2)
    x = torch.randn(1, 4).repeat(40_000, 1)
    estimate = squared_gradients(
        lambda params, batch: batch["x"] @ params["w"],
        {"w": torch.randn(4)},
        [{"x": x, "labels": torch.zeros(len(x))}],
        loss=lambda outputs, labels: 0.5 * (outputs - labels) ** 2,
        sample_labels=gaussian_labels,
        chunk_size=8192,
    )
    torch.testing.assert_close(estimate["w"], x[0] ** 2, rtol=0.05, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_accumulates_in_fp32_at_least(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    params = {"w": torch.randn(3, 4, dtype=dtype), "b": torch.randn(3, dtype=dtype)}
    batch = {"x": torch.randn(500, 4, dtype=dtype), "labels": torch.arange(500) % 3}
    estimate = squared_gradients(linear, params, [batch], loss=loss, chunk_size=1)
    wide = torch.promote_types(dtype, torch.float32)
    assert estimate["w"].dtype == wide
    exact = example_by_example(
        linear,
        {name: tensor.double() for name, tensor in params.items()},
        {"x": batch["x"].double(), "labels": batch["labels"]},
    )
    # 500 additions in bf16 would be wrong by half; what is left is its gradients' own rounding.
    torch.testing.assert_close(estimate["w"].double(), exact["w"], rtol=0.03, atol=1e-3)


def test_bert_with_padding_and_timm() -> None:
    import timm
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(4)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    bert = BertForSequenceClassification(config).double().eval()

    def predict_text(params: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        return functional_call(bert, dict(params), kwargs=inputs).logits  # type: ignore[no-any-return]

    mask = torch.ones(5, 6, dtype=torch.long)
    mask[0, 3:] = 0
    text = {"input_ids": torch.randint(0, 50, (5, 6)), "attention_mask": mask}
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, depth=2, embed_dim=12, num_classes=2
    )
    vit = vit.double().eval()

    def predict_image(params: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        return functional_call(vit, dict(params), (batch["image"],))  # type: ignore[no-any-return]

    image = {"image": torch.randn(5, 3, 16, 16).double()}
    labels = torch.tensor([0, 1, 1, 0, 1])
    for model, predict, inputs in ((bert, predict_text, text), (vit, predict_image, image)):
        params = dict(model.named_parameters())
        batch = {**inputs, "labels": labels}
        estimate = squared_gradients(predict, params, [batch], loss=loss)
        expected = example_by_example(predict, params, batch)
        for name in params:
            torch.testing.assert_close(estimate[name], expected[name], msg=name)


def test_refuses_training_mode_missing_labels_no_data_and_chunks_of_nothing() -> None:
    params = {"w": torch.randn(3, 4), "b": torch.zeros(3)}
    dropout = nn.Dropout(0.5)

    def vmapped(params: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        return linear(params, {"x": dropout(batch["x"])})

    def looking(params: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        assert bool((batch["x"] < 1e9).all())
        return vmapped(params, batch)

    for predict in (vmapped, looking):
        with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
            squared_gradients(predict, params, [data(4)], loss=loss)
    with pytest.raises(ValueError, match=r"no 'labels'; its keys are \['x'\]"):
        squared_gradients(linear, params, [{"x": torch.ones(2, 4)}], loss=loss)
    with pytest.raises(ValueError, match="no examples"):
        squared_gradients(linear, params, [], loss=loss)
    with pytest.raises(ValueError, match="chunk_size is 0"):
        squared_gradients(linear, params, [data(4)], loss=loss, chunk_size=0)


def test_other_errors_of_the_model_are_its_own() -> None:
    params = {"w": torch.randn(3, 5), "b": torch.zeros(3)}
    with pytest.raises(RuntimeError, match=r"shapes|size"):
        squared_gradients(linear, params, [data(4)], loss=loss)
