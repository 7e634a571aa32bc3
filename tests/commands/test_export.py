from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from commands.command_line import fails, prints


def test_export(folder: Path) -> None:
    prints("optimize", "toy.py", "--n-trials", "4", "--seed", "0")
    export = ("export", "toy.py", "--out", "out")
    text = prints(*export)
    assert re.search(r"out: the finetune of trial \d at red 0\.\d+, blue 0\.\d+", text)
    assert "  .: red, for plain" in text
    weights = ("--weights", "red=.2,blue=.6")
    assert "out is an earlier export; replace it with --force" in fails(*export, *weights)
    found = json.loads(prints(*export, *weights, "--force", "--json"))
    assert found["weights"] == pytest.approx({"red": 0.25, "blue": 0.75})
    assert found == json.loads(Path("out/optuna_merge.json").read_text())
    for wrong, told in (
        (("--weights", "red=a"), "can't read 'red=a' in --weights"),
        (("--weights", "green=1"), "weights of 'green', but the study's tasks are red, blue"),
        (("--weights", "red=1", "--trial", "1"), "not both"),
        (("--trial", "77"), "no trial 77: the study's are 0 to"),
        (("--study-name", "other"), "no study 'other'"),
        (("--workdir", "elsewhere"), "nothing was fitted in the working folder"),
        (("--weights", "red=1", "--out", "/proc/best"), "can't write /proc/best"),
    ):
        assert told in fails(*export, "--force", *wrong), wrong
