from __future__ import annotations

import pytest
import torch
from torch import nn

from optuna_merge.merging import merge, merge_into
from optuna_merge.posteriors import DiagonalGaussian, IsotropicGaussian, Mixture


def diagonal(module: nn.Module) -> DiagonalGaussian:
    mean = {name: torch.randn(p.shape) for name, p in module.named_parameters()}
    return DiagonalGaussian(mean, {name: torch.rand(t.shape) + 0.1 for name, t in mean.items()})


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_writes_what_merge_returns_and_nothing_else(module: nn.Module) -> None:
    tasks = [diagonal(module) for _ in range(3)]
    statistics = {name: buffer.clone() for name, buffer in module.named_buffers()}
    places = {name: p.data_ptr() for name, p in module.named_parameters()}
    merge_into(module, tasks, [0.2, 0.3, 0.5])
    expected = merge(tasks, [0.2, 0.3, 0.5])
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, expected[name])
        assert parameter.data_ptr() == places[name]
        assert parameter.requires_grad
    assert all(torch.equal(statistics[name], buffer) for name, buffer in module.named_buffers())


def test_other_dtypes_and_strides(module: nn.Module) -> None:
    tasks = [diagonal(module) for _ in range(2)]
    expected = merge(tasks, [0.4, 0.6])
    module.double()
    with torch.no_grad():
        module[0].weight.set_(torch.zeros(3, 4).double().T)  # type: ignore[index, union-attr, operator]
    merge_into(module, tasks, [0.4, 0.6])
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name].double())


def test_the_module_may_be_one_of_the_tasks(module: nn.Module) -> None:
    first, other = diagonal(module), diagonal(module)
    module.load_state_dict(first.mean, strict=False)
    own = DiagonalGaussian(dict(module.named_parameters()), first.precision)
    for weights in ([0.3, 0.7], [0.7, 0.3]):
        expected = merge([own, other], weights)
        merge_into(module, [own, other], weights)
        assert all(torch.equal(p, expected[name]) for name, p in module.named_parameters())


def test_families_that_are_not_elementwise(module: nn.Module) -> None:
    tasks = [
        Mixture([diagonal(module), diagonal(module)], torch.zeros(2), "layer") for _ in range(2)
    ]
    merge_into(module, tasks, [0.5, 0.5])
    expected = merge(tasks, [0.5, 0.5])
    assert all(torch.equal(p, expected[name]) for name, p in module.named_parameters())


def test_what_does_not_fit_leaves_the_module_as_it_was(module: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    good = diagonal(module)
    wrong = IsotropicGaussian({**good.mean, "0.bias": torch.zeros(5)})
    more = IsotropicGaussian({**good.mean, "head": torch.zeros(5)})
    nan = DiagonalGaussian({**good.mean, "2.bias": torch.full((2,), torch.nan)}, good.precision)
    for task, message, names in (
        (wrong, r"the module: '0\.bias' has shape \(4,\), expected \(5,\)", None),
        (more, "the module has no 'head'", None),
        (good, "names has 'x', which no posterior has", {"x": "0.bias"}),
        (nan, r"task 0: mean '2\.bias' holds NaN", None),
    ):
        with pytest.raises(ValueError, match=message):
            merge_into(module, [task], [1.0], names=names)
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())
