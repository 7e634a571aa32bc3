"""Estimators against the Fisher matrix written out, for models small enough to do so."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn.functional import cross_entropy

from optuna_merge.posteriors import (
    DiagonalGaussian,
    KroneckerGaussian,
    LowRankGaussian,
    adam_second_moments,
    categorical_labels,
    full_fisher,
    kronecker_fisher,
    low_rank_fisher,
    per_tensor,
    squared_gradients,
)
from optuna_merge.posteriors._example_gradients import Labelling

CLASSES = 3


def loss(outputs: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(outputs, labels, reduction="none")


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES)).double().eval()


@pytest.fixture
def batch() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"x": torch.randn(7, 4).double(), "labels": torch.arange(7) % CLASSES}


def predictor(model: nn.Module):  # type: ignore[no-untyped-def]
    def predict(params: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        return functional_call(model, dict(params), (batch["x"],))  # type: ignore[no-any-return]

    return predict


def fisher(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The empirical Fisher matrix over the parameters in order: mean of g g', g = J' (p - y)."""
    params = {name: p.detach() for name, p in model.named_parameters()}
    predict = predictor(model)
    jacobians = jacrev(lambda p: predict(p, batch))(params)
    flat = torch.cat([j.flatten(2) for j in jacobians.values()], 2)
    p = predict(params, batch).softmax(-1)
    gradients = torch.einsum("nap,na->np", flat, p - nn.functional.one_hot(batch["labels"]))
    return gradients.T @ gradients / len(p)


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def test_squared_gradients_are_the_diagonal(model: nn.Module, batch: dict[str, Tensor]) -> None:
    params = dict(model.named_parameters())
    exact = fisher(model, batch).diagonal()
    for chunk_size in (2, 32):
        estimate = squared_gradients(
            predictor(model), params, [batch], loss=loss, chunk_size=chunk_size
        )
        torch.testing.assert_close(flat(estimate), exact, rtol=1e-10, atol=1e-14)


def test_low_rank_is_exact_up_to_the_rank_and_keeps_the_diagonal(
    model: nn.Module, batch: dict[str, Tensor]
) -> None:
    params = {name: p.detach() for name, p in model.named_parameters()}
    exact = fisher(model, batch)
    size = len(exact)
    errors = []
    for rank in (30, 7, 2):
        diagonal, factors = low_rank_fisher(
            predictor(model), params, [batch], rank=rank, loss=loss, chunk_size=4
        )
        assert all(factors[name].shape == (*params[name].shape, rank) for name in params)
        u = torch.cat([LowRankGaussian(params, diagonal, factors).rows()[name] for name in params])
        estimate = flat(diagonal).diag() + u @ u.T
        torch.testing.assert_close(estimate.diagonal(), exact.diagonal(), rtol=1e-10, atol=1e-14)
        errors.append(float((estimate - exact).norm() / exact.norm()))
    assert size == 43
    assert errors[0] < 1e-10
    assert errors[0] < errors[1] < errors[2] < 0.5
    with pytest.raises(ValueError, match="rank is 0"):
        low_rank_fisher(predictor(model), params, [batch], rank=0, loss=loss)


def test_the_full_matrix_has_the_diagonal_of_squared_gradients(
    model: nn.Module, batch: dict[str, Tensor]
) -> None:
    # In another order than the model's: the matrix is in that of `params`.
    params = dict(reversed([(name, p.detach()) for name, p in model.named_parameters()]))

    def labelling() -> Labelling:
        generator = torch.Generator().manual_seed(3)
        return {"loss": loss, "sample_labels": categorical_labels, "generator": generator}

    matrix = full_fisher(predictor(model), params, [batch], chunk_size=3, **labelling())
    diagonal = squared_gradients(predictor(model), params, [batch], chunk_size=3, **labelling())
    assert matrix.shape == (43, 43)
    torch.testing.assert_close(matrix.diagonal(), flat(diagonal), rtol=1e-12, atol=0)
    torch.testing.assert_close(matrix, matrix.T, rtol=1e-12, atol=1e-15)
    assert (matrix - matrix.diagonal().diag()).abs().max() > 1e-3


def test_the_full_matrix_is_the_fisher_matrix(model: nn.Module, batch: dict[str, Tensor]) -> None:
    params = {name: p.detach() for name, p in model.named_parameters()}
    matrix = full_fisher(predictor(model), params, [batch], loss=loss, chunk_size=4)
    torch.testing.assert_close(matrix, fisher(model, batch), rtol=1e-10, atol=1e-14)


def test_one_precision_per_tensor_keeps_each_tensor_s_curvature(
    model: nn.Module, batch: dict[str, Tensor]
) -> None:
    params = {name: p.detach() for name, p in model.named_parameters()}
    curvature = squared_gradients(predictor(model), params, [batch], loss=loss)
    diagonal = DiagonalGaussian(params, dict(reversed(curvature.items())))
    isotropic = per_tensor(diagonal)
    assert list(isotropic.precision) == list(params)  # type: ignore[arg-type]
    for name in params:
        assert isotropic.elementwise(name) == pytest.approx(
            float(curvature[name].mean()), rel=1e-12
        )
    assert isotropic.mean_curvature() == pytest.approx(diagonal.mean_curvature(), rel=1e-12)


def test_kronecker_factors_are_those_of_drawn_labels(
    model: nn.Module, batch: dict[str, Tensor]
) -> None:
    many = {name: column.repeat(2000, *[1] * (column.ndim - 1)) for name, column in batch.items()}
    factors, _ = kronecker_fisher(
        model,
        [many],
        predict=lambda b: model(b["x"]),
        loss=loss,
        sample_labels=categorical_labels,
        generator=torch.Generator().manual_seed(0),
    )
    # Of the last layer G is the mean of diag p - p p', and A that of the hidden units' products.
    hidden = model[:2](batch["x"])  # type: ignore[index]
    p = model(batch["x"]).softmax(-1)
    g = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]).mean(0)
    torch.testing.assert_close(factors["2.weight"][1], g, rtol=0.1, atol=0.01)
    torch.testing.assert_close(factors["2.weight"][0], hidden.T @ hidden / 7)


def test_kronecker_factors_of_one_linear_layer_are_exact_for_equal_gradients() -> None:
    """For squared error G is the identity, and the Fisher matrix a Kronecker product."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 3).double().eval()
    batch = {"x": torch.randn(50_000, 4).double(), "labels": torch.zeros(50_000, 3).double()}
    factors, diagonals = kronecker_fisher(
        layer,
        [batch],
        predict=lambda batch: layer(batch["x"]),
        loss=lambda outputs, labels: 0.5 * (outputs - labels).square().sum(1),
        sample_labels=lambda outputs, _: outputs + torch.randn_like(outputs),
    )
    a, g = factors["weight"]
    torch.testing.assert_close(a, batch["x"].T @ batch["x"] / 50_000)
    torch.testing.assert_close(g, torch.eye(3).double(), atol=0.05, rtol=0)
    torch.testing.assert_close(diagonals["bias"], torch.ones(3).double(), atol=0.05, rtol=0)


class Mixed(nn.Module):
    """Embedding (used twice), convolution, layer norm and linear layers over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(6, 4)
        self.places = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.dense = nn.Linear(4, 4)
        self.conv = nn.Conv2d(1, 2, (2, 3), stride=(1, 2), padding=(0, 1))
        self.out = nn.Linear(16, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.tokens(ids) + self.places(torch.arange(5)) + self.tokens(ids.flip(1))
        hidden = self.dense(self.norm(hidden))
        return self.out(self.conv(hidden[:, None]).flatten(1))  # type: ignore[no-any-return]


def test_diagonals_by_hooks_equal_squared_gradients_and_factors_their_definition() -> None:
    torch.manual_seed(0)
    model = Mixed().double().eval()
    model.dense.bias.requires_grad_(False)
    batch = {"ids": torch.randint(0, 6, (8, 5)), "labels": torch.arange(8) % CLASSES}

    def predict(params: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        return functional_call(model, dict(params), (batch["ids"],))  # type: ignore[no-any-return]

    halves = [{k: v[:3] for k, v in batch.items()}, {k: v[3:] for k, v in batch.items()}]
    factors, diagonals = kronecker_fisher(
        model, halves, predict=lambda batch: model(batch["ids"]), loss=loss
    )
    exact = squared_gradients(predict, dict(model.named_parameters()), [batch], loss=loss)
    expected = {"tokens.weight", "norm.weight", "norm.bias", "conv.bias", "out.bias"}
    assert diagonals.keys() == expected
    for name in expected:
        torch.testing.assert_close(diagonals[name], exact[name], msg=name)

    # The output layer has one position an example, so the trace of its block is exact for one.
    one = {k: v[:1] for k, v in batch.items()}
    single, _ = kronecker_fisher(model, [one], predict=lambda b: model(b["ids"]), loss=loss)
    a, g = single["out.weight"]
    diagonal = squared_gradients(predict, dict(model.named_parameters()), [one], loss=loss)
    torch.testing.assert_close(
        torch.outer(g.diagonal(), a.diagonal()), diagonal["out.weight"], rtol=1e-10, atol=1e-15
    )
    assert factors.keys() == {"dense.weight", "conv.weight", "out.weight"}
    assert factors["conv.weight"][0].shape == (6, 6)
    assert factors["conv.weight"][1].shape == (2, 2)
    KroneckerGaussian(dict(model.named_parameters()), dict(factors), diagonals, 1e-3)


def test_convolution_factors_are_those_of_its_patches() -> None:
    """A convolution whose kernel covers the image is a linear layer."""
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 4).double().eval()
    x = torch.randn(6, 2, 4, 4).double()
    linear = nn.Linear(32, 3).double().eval()
    linear.load_state_dict({"weight": conv.weight.flatten(1), "bias": conv.bias})
    results = []
    for layer, inputs in ((conv, x), (linear, x.flatten(1))):
        batch = {"x": inputs, "labels": torch.arange(6) % 3}
        results.append(
            kronecker_fisher(
                layer,
                [batch],
                predict=lambda b: layer(b["x"]).flatten(1),  # noqa: B023
                loss=loss,
            )
        )
    for one, other in zip(results[0][0]["weight"], results[1][0]["weight"]):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(results[0][1]["bias"], results[1][1]["bias"])


def test_kronecker_fisher_refuses(model: nn.Module, batch: dict[str, Tensor]) -> None:
    def estimate(batches: list[dict[str, Tensor]]) -> None:
        kronecker_fisher(model, batches, predict=lambda b: model(b["x"]), loss=loss)

    with pytest.raises(ValueError, match="no examples"):
        estimate([])
    with pytest.raises(ValueError, match="no 'labels'"):
        estimate([{"x": batch["x"]}])
    model.train()
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        estimate([batch])


@pytest.mark.parametrize("optimizer_class", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_second_moments(optimizer_class: type[torch.optim.Optimizer]) -> None:
    torch.manual_seed(0)
    used, unused = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(2))
    optimizer = optimizer_class([{"params": [used]}, {"params": [unused]}], lr=0.0)  # type: ignore[call-arg]
    batch_size = 8
    squares = []
    for _ in range(2000):
        gradient = torch.randn(batch_size, 3).mean(0) * torch.tensor([1.0, 2.0, 3.0])
        used.grad = gradient
        squares.append(gradient**2)
        optimizer.step()
    moments = adam_second_moments(optimizer, ["a", "b"], batch_size=batch_size)
    assert moments.keys() == {"a"}
    # The examples' own mean squares are 1, 4, 9.
    torch.testing.assert_close(moments["a"], torch.tensor([1.0, 4.0, 9.0]), rtol=0.25, atol=0)
    again = adam_second_moments(optimizer.state_dict(), ["a", "b"], batch_size=batch_size)
    assert torch.equal(again["a"], moments["a"])
    with pytest.raises(ValueError, match="1 names for the optimizer's 2 parameters"):
        adam_second_moments(optimizer, ["a"], batch_size=batch_size)
    with pytest.raises(ValueError, match="expected Adam or AdamW"):
        adam_second_moments(torch.optim.SGD([used], lr=0.1), ["a"], batch_size=1)
