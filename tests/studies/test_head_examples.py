"""The table of how many examples heads are solved on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from studies.anchors import Truths
from studies.head_examples import Previews, table, write

WEIGHTS = np.array([[0.2, 0.8], [0.5, 0.5], [0.8, 0.2]])
METRICS = np.array([[0.1, 0.9], [0.5, 0.6], [0.9, 0.2]])


def test_a_row_for_each_number_behind_that_of_another_finetune(tmp_path: Path) -> None:
    truths = Truths(WEIGHTS, np.array([METRICS, METRICS + 0.02]), np.array([0.5, 0.5]))
    made = [Previews(128, METRICS + 0.11, 1.25), Previews(512, METRICS[::-1], 4.0)]
    lines = table(truths, made, ["a", "b"]).splitlines()
    assert lines[0] == "| examples | error | a | b | mean | worst | seconds |"
    assert [line.split(" | ")[1] for line in lines[2:]] == ["0.0200", "0.1000", "0.5033"]
    assert [line.rpartition(" | ")[2] for line in lines[3:]] == ["1.25 |", "4 |"]
    assert "| 1.00 (" in lines[3] and "| -1.00 (" in lines[4]
    write(tmp_path / "x.csv", truths, made, ["a", "b"])
    rows = (tmp_path / "x.csv").read_text().splitlines()
    assert rows[0] == "examples,weight_a,weight_b,metric_a,metric_b"
    assert rows[1] == "128,0.2,0.8,0.21,1.01"
    assert len(rows) == 7
