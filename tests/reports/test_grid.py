from __future__ import annotations

import itertools

import pytest

from optuna_merge.reports._grid import grid_told, grids, time_told


@pytest.mark.parametrize("n_tasks", [2, 3, 4])
def test_a_grid_has_every_weighting_of_its_step(n_tasks: int) -> None:
    counted = [
        sum(sum(w) == parts for w in itertools.product(range(parts + 1), repeat=n_tasks))
        for parts in (4, 10)
    ]
    assert [grid.finetunes for grid in grids(n_tasks, None)] == counted


def test_grids_in_a_sentence() -> None:
    assert grid_told(grids(3, 60.0)) == (
        "A grid of finetunes has 15 in steps of 0.25 (15.0 min), 66 in steps of 0.1 (66.0 min)."
    )
    assert grid_told(grids(2, None)) == (
        "A grid of finetunes has 5 in steps of 0.25, 11 in steps of 0.1."
    )
    assert grid_told(grids(1, 60.0)) == ""


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(7.55, "7.5 s"), (119, "119.0 s"), (150, "2.5 min"), (10800, "3.0 h"), (259200, "3.0 days")],
)
def test_times_in_words(seconds: float, told: str) -> None:
    assert time_told(seconds) == told
