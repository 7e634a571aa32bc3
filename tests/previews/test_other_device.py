"""Previews of a model on a GPU, which none is needed for: fake tensors know devices, not values.

An operation on tensors of two devices is an error for them as it is for real ones.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from helpers import image_tasks, tiny_vit
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from optuna_merge.merging import _elementwise, _problem
from optuna_merge.models import MultitaskModel, evaluate_tasks, from_timm, task_batches
from optuna_merge.posteriors import DiagonalGaussian
from optuna_merge.previews import Previewer, PreviewSettings, _placement

WEIGHTS = {"left": 0.3, "right": 0.7}


def moved(model: nn.Module) -> None:
    """The model's parameters and buffers as tensors of a GPU."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            fake = torch.empty(parameter.shape, device="cuda")
            setattr(module, name, nn.Parameter(fake, requires_grad=parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(buffer, device="cuda"))


@pytest.mark.parametrize("share, device", [(1.0, "cuda"), (0.0, "cpu")])
def test_a_model_on_a_gpu_is_previewed_there(
    share: float,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # What reads values, or addresses of memory, is left out.
    monkeypatch.setattr(_problem, "check_posteriors", lambda *posterior: True)
    monkeypatch.setattr(_elementwise, "merge_fused", lambda items, weightings: items)
    monkeypatch.setattr(_placement, "free_bytes", lambda device: 1 << 20)
    caplog.set_level(logging.INFO)
    tasks = image_tasks()
    model = from_timm(tiny_vit(), tasks)
    state = model.state(model.shared_names())
    ones = {name: torch.ones_like(tensor) for name, tensor in state.items()}
    posteriors = {task.name: DiagonalGaussian(state, ones) for task in tasks}
    heads = {task.name: model.state(model.own_names(task.name)) for task in tasks}
    settings = PreviewSettings(memory_share=share)
    previewer = Previewer(model, tasks, posteriors, heads, settings=settings)
    with FakeTensorMode(allow_non_fake_inputs=True):
        moved(model)
        assert model.device.type == "cuda"
        previewer.load(WEIGHTS)
        placed: Any = previewer._placed["left"]
        assert {t.device.type for t in (*placed.mean.values(), *placed.precision.values())} == {
            device
        }
        assert ("stay on the host" in caplog.text) == (device == "cpu")
        assert batches_seen(model, previewer) == {"left": 3, "right": 0}
        with pytest.raises(DataDependentOutputException):  # the first value that is read
            previewer(WEIGHTS)


def batches_seen(model: MultitaskModel, previewer: Previewer) -> dict[str, int]:
    """Forward passes, by task, before the first value is read: behind all of a task's."""
    seen = dict.fromkeys(model.tasks, 0)
    forward = model.forward

    def counted(batch: Any, task: str) -> Any:
        seen[task] += 1
        assert {column.device.type for column in batch.values()} == {"cuda"}
        return forward(batch, task)

    model.forward = counted  # type: ignore[method-assign]
    tasks = previewer._tasks
    try:
        with pytest.raises(DataDependentOutputException):
            evaluate_tasks(model, tasks, task_batches(model, tasks, batch_size=4))
    finally:
        model.forward = forward  # type: ignore[method-assign]
    return seen
