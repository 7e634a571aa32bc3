"""How many steps shorter finetunes need."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from studies import fewer_steps
from studies.fewer_steps import row, steps_for
from studies.preview_quality import Point, grid, write_points

STUDIES = Path(fewer_steps.__file__).parent


def test_steps_are_read_off_between_the_rungs() -> None:
    ranks = {0.1: 0.2, 0.4: 0.8, 1.0: 0.9}
    assert steps_for(0.1, ranks) == 0.1
    assert steps_for(0.5, ranks) == pytest.approx(0.2)  # the middle of .1 and .4, in logarithms
    assert steps_for(0.9, ranks) == 1.0
    assert math.isinf(steps_for(0.95, ranks))
    assert steps_for(0.5, {0.1: math.nan, 0.4: 0.8}) == 0.4  # nothing is known below


def write_folder(folder: Path, seeds: int) -> None:
    """Previews know the truth up to an offset; the rung at half of the steps knows its reverse."""
    folder.mkdir(parents=True)
    truths, previews = [], []
    for weights in (w for w in grid(3, 8) if min(w) > 0):
        metrics = tuple(np.sqrt(weights).tolist())
        previews.append(Point("diagonal", 0, weights, 0, 1.0, 0.0, metrics, metrics))
        for seed in range(seeds):
            for rung, steps in enumerate((10, 20)):
                found = metrics if rung else tuple(-m for m in metrics)
                truths.append(
                    Point("truth", seed, weights, steps, 1.0, 0.0, found, found, rung=rung)
                )
    write_points(folder / "truth.csv", truths, ["a", "b", "c"])
    write_points(folder / "previews.csv", previews, ["a", "b", "c"])


def test_a_table_of_known_ranks(tmp_path: Path) -> None:
    write_folder(tmp_path / "known", 2)
    found = row(tmp_path / "known", "diagonal")
    assert found[1:] == ["21", "1.00", "-1.00 at 0.50", "1.00", "1.00"]
    with pytest.raises(ValueError, match="no previews of 'per_tensor'"):
        row(tmp_path / "known", "per_tensor")


def test_finetunes_of_one_seed_have_no_judge(tmp_path: Path) -> None:
    write_folder(tmp_path / "one", 1)
    with pytest.raises(ValueError, match="one seed"):
        row(tmp_path / "one", "diagonal")


def test_what_is_stored_is_what_the_tables_say() -> None:
    stored = (STUDIES / "results" / "fewer_steps.md").read_text()
    for folder, family in (
        ("film/results", "diagonal+heads+anchor"),
        ("groups/results", "diagonal+heads0.1+anchor"),
        ("mixture/results/medium", "diagonal+anchor"),
    ):
        assert "| " + " | ".join(row(STUDIES / folder, family)[1:]) + " |" in stored


def test_the_page_has_the_stored_rows() -> None:
    page = (STUDIES / "results" / "README.md").read_text()
    page = page.partition("### Previews and shorter finetunes\n")[2].partition("\n## ")[0]
    shown, stored = [], []
    for line in page.splitlines():
        if line.startswith("| ") and not line.startswith("| suite"):
            _, count, *numbers = (cell.strip() for cell in line.strip("|").split("|"))
            shown.append((count, *numbers))
    for line in (STUDIES / "results" / "fewer_steps.md").read_text().splitlines():
        if line.startswith("| ") and "---" not in line and not line.startswith("| suite"):
            _, count, rank, rungs, end, steps = (
                cell.strip() for cell in line.strip("|").split("|")
            )
            parts = [part.partition(" at ")[0].replace("nan", "") for part in rungs.split(", ")]
            cells = (cell.removeprefix("0") for cell in (rank, *parts, end, steps))
            stored.append((count, *cells))
    assert sorted(shown) == sorted(stored)
