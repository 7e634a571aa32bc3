"""Previews on a GPU: the CPU's numbers, half precision, and posteriors that do not fit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import toy_definition

from optuna_merge.definition import PosteriorSettings
from optuna_merge.fitting import FittedStudy, fit
from optuna_merge.merging import merge
from optuna_merge.posteriors import FAMILIES, posterior_to
from optuna_merge.previews import PreviewSettings

pytestmark = pytest.mark.gpu

WEIGHTS = {"red": 0.3, "blue": 0.7}
PLAIN = PreviewSettings(heads="merged", anchor="none")


def fitted(folder: Path, family: str = "diagonal", **preview: Any) -> FittedStudy:
    posterior = PosteriorSettings(family=family, examples=16, damping_examples=20, rank=2)
    settings = PreviewSettings(**preview) if preview else PLAIN
    return fit(toy_definition(posterior=posterior, preview=settings), folder, progress=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_merges_are_those_of_a_cpu(family: str, device: torch.device, tmp_path: Path) -> None:
    study = fitted(tmp_path, family)
    assert study.model.device.type == device.type
    posteriors = study.previewer._posteriors
    here = {name: posterior_to(p, device) for name, p in posteriors.items()}
    there = {name: posterior_to(p, "cpu") for name, p in posteriors.items()}
    found, expected = merge(here, WEIGHTS), merge(there, WEIGHTS)
    assert {tensor.device.type for tensor in found.values()} == {device.type}
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.cpu(), expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "preview", [{"heads": "merged", "anchor": "none"}, {"heads": "resolved"}, {}], ids=str
)
def test_previews_are_those_of_a_cpu(
    preview: dict[str, Any],
    device: torch.device,
    tmp_path: Path,
    take_cpu: Callable[[], None],
) -> None:
    study = fitted(tmp_path, **preview)
    found = study.previewer(WEIGHTS).evaluations
    take_cpu()
    other = fitted(tmp_path, **preview)  # reads the same files: nothing is trained again
    assert other.model.device.type == "cpu"
    expected = other.previewer(WEIGHTS).evaluations
    for task, evaluation in found.items():
        assert evaluation.loss.value == pytest.approx(expected[task].loss.value, rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near(precision: str, device: torch.device, tmp_path: Path) -> None:
    if precision == "fp16" and device.type == "cpu":
        pytest.skip("fp16 needs a GPU")
    whole = fitted(tmp_path, heads="merged", anchor="none").previewer(WEIGHTS).evaluations
    half = fitted(tmp_path, heads="merged", anchor="none", mixed_precision=precision)
    seen = set()
    half.model.body[0].register_forward_hook(  # type: ignore[index]
        lambda module, inputs, output: seen.add(output.dtype)
    )
    found = half.previewer(WEIGHTS).evaluations
    assert seen == {torch.bfloat16 if precision == "bf16" else torch.float16}
    for task, evaluation in found.items():
        assert evaluation.loss.value == pytest.approx(whole[task].loss.value, rel=0.05)


def test_posteriors_larger_than_the_free_share_stay_on_the_host(
    device: torch.device, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = fitted(tmp_path).previewer(WEIGHTS).evaluations
    study = fitted(tmp_path, heads="merged", anchor="none", memory_share=0.0)
    with caplog.at_level(logging.INFO):
        found = study.previewer(WEIGHTS).evaluations
    if device.type == "cuda":
        assert "stay on the host" in caplog.text
    placed = [part.value for p in study.previewer._placed.values() for part in p.parts()]
    assert {t.device.type for t in placed if isinstance(t, torch.Tensor)} <= {"cpu"}
    assert study.model.device.type == device.type
    for task, evaluation in found.items():
        assert evaluation.loss.value == pytest.approx(expected[task].loss.value, rel=1e-4)


def test_posteriors_make_room_for_finetunes(device: torch.device, tmp_path: Path) -> None:
    study = fitted(tmp_path, heads="merged", anchor="none", memory_share=1.0)
    first = study.previewer(WEIGHTS).evaluations
    placed = [part.value for p in study.previewer._placed.values() for part in p.parts()]
    assert {t.device.type for t in placed if isinstance(t, torch.Tensor) and t.ndim} == {
        device.type
    }
    study.finetune({"red": 0.6, "blue": 0.4}, lambda step, metrics: None)
    assert not study.previewer._placed
    assert study.previewer(WEIGHTS).evaluations == first
