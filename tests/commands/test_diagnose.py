from __future__ import annotations

import json
from pathlib import Path

from commands.command_line import fails, prints


def test_diagnose_reads_nothing_but_the_study(folder: Path) -> None:
    prints("optimize", "toy.py", "--n-trials", "8", "--fraction", "1", "--seed", "0")
    Path("toy.py").unlink()
    assert prints("diagnose").startswith("score, red, blue: 0 truths, too few truths to judge")
    found = json.loads(prints("diagnose", "--json"))
    assert list(found["tasks"]) == ["red", "blue"]
    assert found["score"]["count"] == 0  # uniform weights are the anchor, the others corners
    assert found["score"]["verdict"] == "too few truths"
    told = fails("diagnose", "--study-name", "missing")
    assert "no study 'missing' in this storage; there are: optuna_merge" in told
