"""The program of the Lightning example: killed between its rungs it goes on to the same end."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

from optuna_merge.trainers import Run

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "lightning_program.py"


def test_a_finetune_goes_on_from_its_last_rung(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lightning")
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    example = runpy.run_path(str(EXAMPLE))
    program = example["LightningProgram"]()
    weights = {"red": 0.25, "blue": 0.75}
    run = Run(weights, weights, tmp_path)
    rungs: dict[int, object] = {}
    program.train(run, rungs.__setitem__)
    assert list(rungs) == [20, 40]
    last = tmp_path / "40.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 40
    whole = program.parameters(tmp_path)
    last.unlink()
    again: dict[int, object] = {}
    program.train(run, again.__setitem__)
    assert again == rungs
    for name, tensor in program.parameters(tmp_path).items():
        torch.testing.assert_close(tensor, whole[name], rtol=0, atol=0)
