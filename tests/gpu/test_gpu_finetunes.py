"""Finetunes on a GPU: where everything is, half precision, and runs that go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import InterruptedData, raise_at, toy_model, toy_settings, toy_tasks

from optuna_merge.finetuning import FinetuneResult, FinetuneSettings, FinetuneStore, finetune
from optuna_merge.models import MultitaskModel
from optuna_merge.tasks import Task, TensorData

pytestmark = pytest.mark.gpu

WEIGHTS = {"red": 0.3, "blue": 0.7}
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def run(
    settings: FinetuneSettings, tasks: tuple[Task, Task] | None = None, **options: object
) -> tuple[FinetuneResult, MultitaskModel]:
    tasks = tasks or toy_tasks()
    model = toy_model(tasks, dropout=0.0)
    return finetune(model, tasks, WEIGHTS, settings, **options), model  # type: ignore[arg-type]


def close(found: MultitaskModel, expected: MultitaskModel, tolerance: float) -> None:
    state, other = found.state(), expected.state()
    for name, tensor in state.items():
        torch.testing.assert_close(tensor.cpu(), other[name].cpu(), rtol=tolerance, atol=tolerance)


def test_a_finetune_is_on_the_device_and_like_that_of_a_cpu(
    device: torch.device, take_cpu: Callable[[], None]
) -> None:
    result, model = run(toy_settings())
    assert {p.device.type for p in model.parameters()} == {device.type}
    take_cpu()
    expected, other = run(toy_settings())
    assert {p.device.type for p in other.parameters()} == {"cpu"}
    close(model, other, 1e-4)
    for task, evaluation in result.evaluations.items():
        assert evaluation.loss.value == pytest.approx(expected.evaluations[task].loss.value, 1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_used_and_parameters_stay_whole(
    precision: str, device: torch.device
) -> None:
    if precision == "fp16" and device.type == "cpu":
        pytest.skip("fp16 needs a GPU")
    seen = set()
    tasks = toy_tasks()
    model = toy_model(tasks, dropout=0.0)
    layer = model.body[0]  # type: ignore[index]
    hook = layer.register_forward_hook(
        lambda module, inputs, output: seen.add(output.dtype) if module.training else None
    )
    result = finetune(model, tasks, WEIGHTS, toy_settings(mixed_precision=precision))
    hook.remove()
    assert seen == {HALVES[precision]}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    _, whole = run(toy_settings())
    # A step with fp16 is left out where its gradients overflow.
    close(model, whole, 0.05 if precision == "bf16" else 0.1)
    assert all(e.loss.value < 10 for e in result.evaluations.values())
    moved = (
        model.state()["body.0.weight"].cpu() - toy_model(tasks).state()["body.0.weight"]
    ).abs()
    assert float(moved.max()) > 1e-3, "it has learnt"


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("rung", [3, 5])
def test_a_run_goes_on_from_its_checkpoint(
    precision: str, rung: int, device: torch.device, tmp_path: Path
) -> None:
    if precision == "fp16" and device.type == "cpu":
        pytest.skip("fp16 needs a GPU")
    settings = toy_settings(mixed_precision=precision)
    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(settings, checkpoint=checkpoint, on_rung=raise_at(rung))
    torch.cuda.manual_seed_all(rung)  # whatever was drawn meanwhile
    result, model = run(settings, checkpoint=checkpoint)
    assert result.resumed_at == rung
    expected, whole = run(settings)
    close(model, whole, 1e-4)
    for task, evaluation in result.evaluations.items():
        assert evaluation.loss.value == pytest.approx(expected.evaluations[task].loss.value, 1e-5)


def test_a_run_that_dies_between_rungs_goes_on_in_a_store(
    device: torch.device, tmp_path: Path
) -> None:
    red, blue = toy_tasks()
    data = red.data("train")
    assert isinstance(data, TensorData)
    dying = Task("red", InterruptedData(data.columns, at=1 + 4), red.validation, 2)
    store = FinetuneStore(tmp_path, {"red": "1", "blue": "2"})
    model = toy_model((dying, blue), dropout=0.0)
    with pytest.raises(KeyboardInterrupt):
        store.run(model, (dying, blue), WEIGHTS, toy_settings())
    model = toy_model((red, blue), dropout=0.0)
    found = store.run(model, (red, blue), WEIGHTS, toy_settings())
    assert {t.device.type for t in found.parameters().values()} == {"cpu"}, "files have no device"
    _, whole = run(toy_settings())
    for name, tensor in found.parameters().items():
        torch.testing.assert_close(tensor, whole.state()[name].cpu(), rtol=1e-5, atol=1e-5)
