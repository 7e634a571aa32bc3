"""The table of how many examples heads are solved on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from studies.anchors import Truths
from studies.head_examples import Previews, table, write

OWN = np.linspace(0.1, 0.9, 9)
WEIGHTS = np.stack([OWN, 1 - OWN], axis=1)
METRICS = np.stack([OWN**2, (1 - OWN) / 2], axis=1)


def test_a_row_for_each_number_behind_that_of_another_finetune(tmp_path: Path) -> None:
    truths = Truths(WEIGHTS, np.array([METRICS, METRICS + 0.02]), np.array([0.5, 0.5]))
    made = [Previews(128, METRICS + 0.11, 1.25), Previews(512, METRICS[::-1], 4.0)]
    lines = table(truths, made, ["a", "b"]).splitlines()
    assert lines[0] == "| examples | error | a | b | mean | worst | seconds |"
    assert [line.split(" | ")[1] for line in lines[2:4]] == ["0.0200", "0.1000"]
    assert [line.rpartition(" | ")[2] for line in lines[3:]] == ["1.25 |", "4 |"]
    assert lines[3].count("| 1.00 (") == 4 and lines[4].count("| -1.00 (") >= 2
    write(tmp_path / "x.csv", truths, made, ["a", "b"])
    rows = (tmp_path / "x.csv").read_text().splitlines()
    assert rows[0] == "examples,weight_a,weight_b,metric_a,metric_b"
    assert rows[1] == "128,0.1,0.9,0.12,0.56"
    assert len(rows) == 1 + 2 * 9
