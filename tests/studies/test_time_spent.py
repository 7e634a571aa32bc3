"""The table of where a study's seconds go."""

from __future__ import annotations

from pathlib import Path

import pytest

import optuna_merge
from studies.time_spent import STAGES, by_stage, profiled, table


def test_every_stage_s_functions_are_there() -> None:
    package = Path(optuna_merge.__file__).parent
    for functions in STAGES.values():
        for file, name in functions:
            assert f"def {name}(" in (package / file).read_text(), (file, name)


def test_stages_add_up() -> None:
    rows = {
        (f"optuna_merge/{file}", 1, name): (1, 1, 2.0, 3.0, {})
        for functions in STAGES.values()
        for file, name in functions
    }
    rows["elsewhere.py", 1, "other"] = (1, 1, 40.0, 99.0, {})
    found = by_stage(rows)
    assert found["previews: all else"] == 0.0
    assert found["finetunes"] == 6.0
    assert sum(found.values()) == pytest.approx(2 * found["whole"])
    assert table(found).splitlines()[-1].startswith("| whole | ")


def test_a_stage_that_never_ran_is_named() -> None:
    with pytest.raises(ValueError, match=r"'data and model': none of .* was called"):
        by_stage({})


def test_seconds_of_calls() -> None:
    def work() -> int:
        return sum(range(1000))

    rows = profiled(work)
    (row,) = (row for (_, _, name), row in rows.items() if name == "work")
    assert row[0] == 1
