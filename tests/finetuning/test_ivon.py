from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from optuna_merge.finetuning._ivon import IVON
from optuna_merge.posteriors import squared_gradients

CURVATURE = torch.tensor([0.2, 1.0, 5.0, 20.0])
CENTRE = torch.tensor([1.0, -2.0, 0.5, 3.0])


def quadratic(x: Tensor) -> Tensor:
    return 0.5 * (CURVATURE * (x - CENTRE) ** 2).sum()


def run(optimizer: IVON, x: Tensor, steps: int) -> None:
    for _ in range(steps):
        with optimizer.sampled():
            quadratic(x).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def test_finds_mean_and_curvature_of_a_quadratic_with_its_prior() -> None:
    torch.manual_seed(0)
    # Sixty copies of each coordinate, for single estimates of h are noisy.
    x = nn.Parameter(torch.zeros(60, 4))
    optimizer = IVON([x], 0.05, ess=100, delta=0.5, initial_h=5.0, betas=(0.9, 0.998))
    run(optimizer, x, 2000)
    expected = CURVATURE * CENTRE / (CURVATURE + 0.5)
    torch.testing.assert_close(x.detach().mean(0), expected, atol=0.05, rtol=0)
    # The variational fixed point of a quadratic is its Hessian.
    (h,) = optimizer.curvature()
    torch.testing.assert_close(h.mean(0), CURVATURE, rtol=0.15, atol=0.15)


def test_a_short_run_s_curvature_does_not_depend_on_where_it_began() -> None:
    estimates = []
    for initial_h in (0.1, 10.0):
        torch.manual_seed(0)
        x = nn.Parameter(CENTRE.clone())
        optimizer = IVON([x], 1e-3, ess=1e3, delta=0.1, initial_h=initial_h, betas=(0.9, 0.999))
        run(optimizer, x, 300)
        estimates.append(optimizer.curvature()[0])
    first, second = estimates
    assert torch.corrcoef(torch.stack([first, CURVATURE]))[0, 1] > 0.9
    assert torch.corrcoef(torch.stack([second, CURVATURE]))[0, 1] > 0.9
    # Undebiased, three quarters of the start would be left: a difference of 7.
    assert (first - second).abs().median() < 3


def test_agrees_with_squared_gradients_on_logistic_regression() -> None:
    torch.manual_seed(0)
    features = torch.randn(300, 6) * torch.tensor([0.2, 0.5, 1.0, 1.5, 2.0, 3.0])
    labels = torch.bernoulli(torch.sigmoid(features @ torch.randn(6)))
    w = nn.Parameter(torch.zeros(6))

    def losses(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(x @ w, y, reduction="none")

    optimizer = IVON([w], 0.02, ess=300, delta=0.01, betas=(0.9, 0.998))
    for _ in range(2000):
        with optimizer.sampled():
            losses(w, features, labels).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    exact = squared_gradients(
        lambda params, batch: batch["x"] @ params["w"],
        {"w": w.detach()},
        [{"x": features, "labels": labels}],
        loss=lambda outputs, y: nn.functional.binary_cross_entropy_with_logits(
            outputs, y, reduction="none"
        ),
        sample_labels=lambda outputs, _: torch.bernoulli(outputs.sigmoid()),
        chunk_size=300,
    )["w"]
    (h,) = optimizer.curvature()
    assert torch.corrcoef(torch.stack([h.log1p(), exact.log1p()]))[0, 1] > 0.8


def test_goes_on_from_its_state() -> None:
    torch.manual_seed(0)
    x = nn.Parameter(torch.zeros(4))
    optimizer = IVON([x], 0.1, ess=100, generator=torch.Generator().manual_seed(0))
    run(optimizer, x, 5)
    y = nn.Parameter(x.detach().clone())
    generator = torch.Generator()
    generator.set_state(optimizer._generator.get_state())  # type: ignore[union-attr]
    again = IVON([y], 0.1, ess=100, generator=generator)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(optimizer, x, 5)
    run(again, y, 5)
    assert torch.equal(x, y)
    assert torch.equal(optimizer.curvature()[0], again.curvature()[0])


def test_several_samples_unused_parameters_and_errors_within_the_block() -> None:
    torch.manual_seed(0)
    x, unused = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.ones(2))
    optimizer = IVON([{"params": [x]}, {"params": [unused], "delta": 0.5}], 0.1, ess=100)
    for _ in range(3):
        with optimizer.sampled():
            assert not torch.equal(x, torch.zeros(4))
            quadratic(x).backward()  # type: ignore[no-untyped-call]
        assert torch.equal(x, torch.zeros(4))
    optimizer.step()
    assert not torch.equal(x, torch.zeros(4))
    assert torch.equal(unused, torch.ones(2))
    before = x.detach().clone()
    with pytest.raises(RuntimeError, match="boom"), optimizer.sampled():
        raise RuntimeError("boom")
    assert torch.equal(x, before)
    with pytest.raises(ValueError, match="no sample since the last step"):
        optimizer.step()
    with pytest.raises(ValueError, match="takes no closure"):
        optimizer.step(lambda: 0.0)


def test_clip_bounds_the_step() -> None:
    x = nn.Parameter(torch.zeros(4))
    optimizer = IVON([x], 0.5, ess=1e4, initial_h=20.0, betas=(0.9, 0.9999), clip=0.001)
    run(optimizer, x, 1)
    torch.testing.assert_close(x.detach().abs(), torch.full((4,), 0.0005))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr is 0.0"),
        ({"ess": -1.0}, "ess is -1.0"),
        ({"delta": math.nan}, "delta is nan"),
        ({"initial_h": -1.0}, "initial_h is -1.0"),
        ({"betas": (0.9, 1.0)}, r"betas are \(0.9, 1.0\)"),
    ],
)
def test_bad_settings(options: dict[str, float], message: str) -> None:
    settings = {"lr": 0.1, "ess": 10.0, **options}
    with pytest.raises(ValueError, match=message):
        IVON([nn.Parameter(torch.zeros(1))], **settings)  # type: ignore[arg-type]
    fresh = IVON([nn.Parameter(torch.zeros(1))], 0.1, ess=10)
    with pytest.raises(ValueError, match="no step was taken"):
        fresh.curvature()


def test_agrees_with_the_reference_package() -> None:
    ivon = pytest.importorskip("ivon")
    x, y = (nn.Parameter(torch.zeros(4)) for _ in range(2))
    ours = IVON([x], 0.1, ess=100, delta=0.3, initial_h=0.5, betas=(0.9, 0.99))
    theirs = ivon.IVON(
        [y],
        0.1,
        ess=100,
        weight_decay=0.3,
        hess_init=0.5,
        beta1=0.9,
        beta2=0.99,
        rescale_lr=False,
    )
    torch.manual_seed(0)
    run(ours, x, 20)
    torch.manual_seed(0)
    for _ in range(20):
        with theirs.sampled_params(train=True):
            theirs.zero_grad()
            quadratic(y).backward()  # type: ignore[no-untyped-call]
        theirs.step()
    torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
