from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from optuna_merge.merging import reestimate_batch_norm


def conv_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(4, 3, 2),
        nn.BatchNorm2d(3),
        nn.Flatten(),
    )


def images(size: int = 23) -> Tensor:
    return torch.randn(size, 2, 5, 6, generator=torch.Generator().manual_seed(1)) * 3 + 2


def statistics(module: nn.Module) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in module.named_buffers() if "running" in name}


def test_one_batch_gives_the_statistics_that_training_on_it_gives() -> None:
    net, x = conv_net(), images()
    expected = copy.deepcopy(net).eval()
    for module in expected:
        if isinstance(module, nn.BatchNorm2d):
            module.train().momentum = 1.0
    expected(x)
    reestimate_batch_norm(net, [x])
    for name, tensor in statistics(expected).items():
        torch.testing.assert_close(statistics(net)[name], tensor)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet"])
def test_timm_s_batch_norms_are_as_torch_s(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=0, drop_rate=0.5).eval()
    expected = copy.deepcopy(net)
    x = torch.randn(8, 3, 32, 32)
    reestimate_batch_norm(net, [x])
    torch.optim.swa_utils.update_bn([x], expected.train())
    assert statistics(net)
    for buffer, tensor in statistics(expected).items():
        torch.testing.assert_close(statistics(net)[buffer], tensor)


def test_the_first_layer_has_the_statistics_of_all_values_however_they_are_batched() -> None:
    x = images()
    values = conv_net()[0](x).double().transpose(0, 1).flatten(1)
    for batches in (x.split(23), x.split(5), x.split(1), (x[:20], x[20:])):
        net = conv_net()
        reestimate_batch_norm(net, batches)
        torch.testing.assert_close(net[1].running_mean.double(), values.mean(1))
        torch.testing.assert_close(net[1].running_var.double(), values.var(1))


def test_the_order_of_batches_and_what_was_there_have_no_influence() -> None:
    batches = images().split(6)
    first, second = conv_net(), conv_net()
    with torch.no_grad():
        second[1].running_mean.fill_(torch.nan)
        second[5].running_var.fill_(7)
    second[5].momentum = None
    reestimate_batch_norm(first, batches)
    reestimate_batch_norm(second, batches[::-1])
    for name, tensor in statistics(first).items():
        torch.testing.assert_close(statistics(second)[name], tensor)
    before = statistics(first)
    reestimate_batch_norm(first, batches)
    assert all(torch.equal(before[name], b) for name, b in statistics(first).items())


def test_all_else_stays_as_it_was() -> None:
    net = conv_net()
    net[3].eval()
    net[5].eval()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    random = torch.get_rng_state()
    reestimate_batch_norm(net, images().split(4))
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)  # no dropout
    changed = {name for name, tensor in net.state_dict().items() if not tensor.equal(state[name])}
    assert changed == {f"{i}.running_{part}" for i in (1, 5) for part in ("mean", "var")}
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_a_part_of_a_model_leaves_the_other_batch_norms_alone() -> None:
    net, x = conv_net().eval(), images()
    before = statistics(net)
    reestimate_batch_norm(net[5], x.split(8), predict=net)
    after = statistics(net)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"5.running_mean", "5.running_var"}
    values = net[:5](x).transpose(0, 1).flatten(1)  # the first one in evaluation mode
    torch.testing.assert_close(net[5].running_mean, values.mean(1))


def test_a_batch_norm_that_is_used_twice_or_not_at_all() -> None:
    norm, unused = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    both = nn.ModuleList([norm, unused, nn.BatchNorm1d(2, track_running_stats=False)])
    x = torch.tensor([[0.0, 1.0], [2.0, 5.0]])
    reestimate_batch_norm(both, [x], predict=lambda batch: [norm(batch), norm(batch + 4)])
    torch.testing.assert_close(norm.running_mean, torch.tensor([3.0, 5.0]))
    torch.testing.assert_close(norm.running_var, torch.tensor([20 / 3, 32 / 3]))
    assert torch.equal(unused.running_mean, torch.zeros(2))
    assert torch.equal(unused.running_var, torch.ones(2))


def test_low_precision_values_are_averaged_in_high_precision() -> None:
    net = nn.BatchNorm1d(1).to(torch.bfloat16)
    x = (torch.randn(4000, 1, generator=torch.Generator().manual_seed(0)) + 3).bfloat16()
    reestimate_batch_norm(net, x.split(50))
    assert net.running_mean.item() == x.double().mean().bfloat16().item()
    assert net.running_var.item() == x.double().var().bfloat16().item()


def test_without_batch_norms_nothing_is_read() -> None:
    def unread() -> object:
        raise AssertionError("the batches were read")
        yield

    reestimate_batch_norm(nn.Linear(2, 2), unread())


@pytest.mark.parametrize(
    "batches, message",
    [
        ([], "no batches to estimate"),
        ([torch.randn(4, 2), torch.randn(1, 2)], "more than 1 value"),
    ],
)
def test_errors_leave_the_module_as_it_was(batches: list[Tensor], message: str) -> None:
    net = nn.Sequential(nn.BatchNorm1d(2)).eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        reestimate_batch_norm(net, batches)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert not net[0].training and not net[0]._forward_pre_hooks
