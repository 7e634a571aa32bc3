"""The folder examples/language: a language model's study by commands alone."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from optuna_merge.cli import app
from optuna_merge.tasks import TensorData

START = Path(__file__).resolve().parents[2] / "examples" / "language" / "start.py"


def test_a_study_by_commands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(START), "study"])
    runpy.run_path(str(START), run_name="__main__")
    text = Path("study/study.yaml").read_text()
    Path("study/study.yaml").write_text(text.replace("steps: 40", "steps: 6"))
    arguments = ["optimize", "study/study.yaml", "--n-trials", "4", "--seed", "0"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "Best task weights: math" in result.stdout
    assert "test" in result.stdout, "a share of the data is test data"


def test_every_word_of_the_data_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    from optuna_merge.definition import load_yaml

    monkeypatch.setattr(sys, "argv", [str(START), str(tmp_path)])
    runpy.run_path(str(START), run_name="__main__")
    unknown = 3
    for task in load_yaml(tmp_path / "study.yaml").tasks:
        data = task.data("train")
        assert isinstance(data, TensorData)
        assert not bool((data.columns["input_ids"] == unknown).any())
