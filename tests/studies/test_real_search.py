"""Real searches of the toy tasks at equal cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import toy_columns, toy_definition, toy_settings, toy_task

from optuna_merge.fitting import fit
from optuna_merge.tasks import Task
from studies.search.real import SEARCHES, compare, search_doubling, table, with_error

STEPS, BUDGET = 18, 5


def tasks() -> list[Task]:
    """The toy tasks with test data."""
    return [
        toy_task("red", 1, test=toy_columns(40, 2, 11)),
        toy_task("blue", 2, classes=3, test=toy_columns(40, 3, 12)),
    ]


def test_every_search_trains_for_as_many_steps_as_it_may(tmp_path: Path) -> None:
    rows = compare(
        lambda: toy_definition(tasks(), finetuning=toy_settings(steps=STEPS)),
        tmp_path,
        "relative",
        seeds=1,
        budget=BUDGET,
        fresh=1,
    )
    assert [row["method"] for row in rows] == list(SEARCHES)
    uniform, doubling, curve, hyperband, ours = rows
    assert (uniform["steps"], uniform["finetunes"]) == (STEPS, 1)
    assert STEPS <= doubling["steps"] <= BUDGET * STEPS  # it ends in a corner
    assert curve["steps"] == BUDGET * STEPS  # the tasks alone and uniform weights among them
    for row in (hyperband, ours):
        # No search stops before its budget, or begins another trial after it.
        assert BUDGET * STEPS <= row["steps"] < (BUDGET + 2) * STEPS
    assert 1 <= hyperband["finetunes"] <= BUDGET + 1
    rungs = hyperband["ends"]
    assert len(rungs) == 3
    assert rungs[2] == hyperband["finetunes"]
    assert rungs[0] * 2 + rungs[1] * 6 + rungs[2] * STEPS == hyperband["steps"]
    n_tasks = len(ours["weights"])
    assert 1 <= ours["finetunes"] <= BUDGET - n_tasks + 1
    assert ours["steps"] == (n_tasks + ours["finetunes"]) * STEPS  # the task runs were paid
    for row in rows:
        assert sum(row["weights"].values()) == pytest.approx(1)
        assert len(row["scores"]) == len(row["test_scores"]) == 1
    runs = sorted(tmp_path.glob("judge/finetunes/*"))
    assert len(runs) >= n_tasks + 1
    lines = table(rows).splitlines()
    assert len(lines) == 2 + len(SEARCHES)
    assert lines[2].startswith("| uniform | 18 | 1.0 |")


def test_the_doubling_rule_knows_the_score(tmp_path: Path) -> None:
    """Each task as the target: the rule gives it more weight, whichever task is the worst."""
    for target in ("red", "blue"):
        study = toy_definition(
            tasks(), score=f"target:{target}", finetuning=toy_settings(steps=STEPS)
        )
        fitted = fit(study, tmp_path / target, progress=False)
        search_doubling(fitted, 0, 2 * STEPS)
        doubled = {"red": 1 / 3, "blue": 1 / 3} | {target: 2 / 3}
        assert fitted.store.find(doubled, study.finetuning) is not None


def test_differences_are_paired_and_have_errors() -> None:
    def row(method: str, seed: int, score: float) -> dict[str, Any]:
        found = {"method": method, "seed": seed, "scores": [score], "test_scores": [score - 0.1]}
        return found | {"steps": 9, "finetunes": 1, "seen": score, "weights": {"a": 1.0}}

    rows = [
        row(method, seed, score + gain)
        for method, gain in (("uniform", 0.0), *((m, 0.02) for m in SEARCHES if m != "uniform"))
        for seed, score in enumerate((0.5, 0.7, 0.9))
    ]
    line = table(rows).splitlines()[-1]
    # The spread of the seeds is in the means and not in the paired differences.
    assert "| 0.7200 ± 0.1155 | 0.6200 ± 0.1155 | +0.0200 ± 0.0000 | +0.0200 ± 0.0000 |" in line
    assert with_error([0.5]) == "0.5000"
