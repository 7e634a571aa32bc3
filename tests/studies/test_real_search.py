"""Real searches of the toy tasks at equal cost."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import toy_definition, toy_settings

from studies.search.real import SEARCHES, compare, table

STEPS, BUDGET = 18, 5


def test_every_search_trains_for_as_many_steps_as_it_may(tmp_path: Path) -> None:
    rows = compare(
        lambda: toy_definition(finetuning=toy_settings(steps=STEPS)),
        tmp_path,
        "relative",
        seeds=1,
        budget=BUDGET,
        fresh=1,
    )
    assert [row["method"] for row in rows] == list(SEARCHES)
    uniform, hyperband, ours = rows
    assert (uniform["steps"], uniform["finetunes"]) == (STEPS, 1)
    for row in (hyperband, ours):
        # No search stops before its budget, or begins another trial after it.
        assert BUDGET * STEPS <= row["steps"] < (BUDGET + 2) * STEPS
    assert 1 <= hyperband["finetunes"] <= BUDGET + 1
    n_tasks = len(ours["weights"])
    assert 1 <= ours["finetunes"] <= BUDGET - n_tasks + 1
    assert ours["steps"] == (n_tasks + ours["finetunes"]) * STEPS  # the task runs were paid
    for row in rows:
        assert sum(row["weights"].values()) == pytest.approx(1)
        assert len(row["scores"]) == 1
    runs = sorted(tmp_path.glob("judge/finetunes/*"))
    assert len(runs) >= n_tasks + 1
    lines = table(rows).splitlines()
    assert len(lines) == 2 + len(SEARCHES)
    assert lines[2].startswith("| uniform | 18 | 1.0 |")
