from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import save_bert
from language_helpers import TOKENIZER

from commands.command_line import fails, prints


def test_a_definition_to_be_edited(folder: Path) -> None:
    assert "optuna-merge optimize study.yaml" in prints("init")
    assert "study.yaml is there already; take another name, or --force" in fails("init")
    prints("init", "--force")
    assert "ends with .yaml or .yml" in fails("init", "study.py")
    assert "can't write /proc/study.yaml" in fails("init", "/proc/study.yaml")
    told = fails("fit", "study.yaml")
    assert "study.yaml:13:10: task 'topic', train data: no file" in told


def test_all_commands_on_a_yaml_definition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_bert(tmp_path / "bert", layers=2)
    TOKENIZER.save_pretrained(tmp_path / "bert")
    rows = [f"w{i % 6} w{i % 5},{i % 2},{'abc'[i % 3]}" for i in range(60)]
    Path("data.csv").write_text("\n".join(["text,parity,letter", *rows, ""]))
    Path("study.yaml").write_text(
        "model: {kind: text, name: bert}\n"
        "data: {train: data.csv, validation: 0.3}\n"
        "tasks: [{name: parity, label: parity}, {name: letter, label: letter}]\n"
        "finetuning: {steps: 4, batch_size: 8}\n"
        "posterior: {family: isotropic}\n"
    )
    prints("fit", "study.yaml")
    text = prints("optimize", "study.yaml", "--n-trials", "4", "--seed", "0")
    assert "Best task weights: parity" in text
    prints("report", "study.yaml")
    prints("export", "study.yaml", "--out", "best", "--weights", "letter=1")
    config = json.loads(Path("best/letter/config.json").read_text())
    assert config["id2label"] == {"0": "a", "1": "b", "2": "c"}
