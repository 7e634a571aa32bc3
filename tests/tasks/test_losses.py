from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from optuna_merge.posteriors import squared_gradients
from optuna_merge.tasks import Loss, token_cross_entropy

Batch = dict[str, Tensor]


def tagged(count: int = 6, tokens: int = 5) -> Batch:
    """Features of tokens, and labels of which each example has from 0 to `tokens`."""
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (count, tokens), generator=random)
    lengths = torch.arange(count)[:, None]
    return {
        "x": torch.randn(count, tokens, 2, generator=random),
        "labels": labels.where(torch.arange(tokens) < lengths, -100),
    }


def linear(parameters: dict[str, Tensor], batch: Batch) -> Tensor:
    return batch["x"] @ parameters["w"].T


WEIGHT = torch.tensor([[0.5, -1.0], [0.2, 0.4], [-0.3, 1.0]])


def test_token_cross_entropy_is_each_examples_mean_over_its_labelled_tokens() -> None:
    batch = tagged()
    outputs, labels = linear({"w": WEIGHT}, batch), batch["labels"]
    losses = token_cross_entropy(outputs, labels)
    for loss, logits, row in zip(losses, outputs, labels):
        kept = row >= 0
        if kept.any():
            probabilities = logits[kept].softmax(-1).gather(1, row[kept][:, None])
            assert loss.item() == pytest.approx(-probabilities.log().mean().item(), rel=1e-5)
        else:
            assert loss.item() == 0.0


def test_squared_gradients_of_token_losses_are_the_curvature_of_their_means() -> None:
    batch = tagged()
    assert token_cross_entropy.for_curvature is not None
    repeated = {key: value.repeat(800, *[1] * (value.ndim - 1)) for key, value in batch.items()}
    found = squared_gradients(
        linear,
        {"w": WEIGHT},
        [repeated],
        loss=token_cross_entropy.for_curvature,
        sample_labels=token_cross_entropy.sample_labels,
        chunk_size=1000,
        generator=torch.Generator().manual_seed(1),
    )["w"]
    # For logits linear in the weights the Gauss-Newton matrix is the Hessian.
    hessian = torch.func.hessian(
        lambda w: token_cross_entropy(linear({"w": w}, batch), batch["labels"]).mean()
    )(WEIGHT)
    exact = torch.einsum("ijij->ij", hessian)
    torch.testing.assert_close(found, exact, rtol=0.1, atol=0)


@pytest.mark.parametrize("ignored", [True, False])
def test_labels_are_drawn_only_where_the_data_have_them(ignored: bool) -> None:
    seen: list[Tensor] = []

    def function(outputs: Tensor, labels: Tensor) -> Tensor:
        return token_cross_entropy(outputs, labels)

    def spy(outputs: Tensor, generator: torch.Generator | None) -> Tensor:
        drawn = torch.ones(outputs.shape[:-1], dtype=torch.long)
        seen.append(drawn)
        return drawn

    batch = tagged()
    if not ignored:
        batch["labels"] = batch["labels"].clamp(min=0)
    loss = Loss("spied", function, spy)
    found = squared_gradients(
        linear, {"w": WEIGHT}, [batch], loss=loss, sample_labels=loss.sample_labels
    )
    ones = batch["labels"].where(batch["labels"] == -100, 1)
    expected = squared_gradients(linear, {"w": WEIGHT}, [batch | {"labels": ones}], loss=loss)
    assert len(seen) == 1
    assert torch.equal(found["w"], expected["w"])
    assert math.isfinite(found["w"].sum().item())
