"""What tables say about previews, on made-up points."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import studies.judge
from studies.judge import (
    alone_of,
    judge_score,
    markdown,
    regret_of_draws,
    scores_of,
    stopped,
    task_correlations,
)
from studies.preview_quality import FINETUNE, Point, grid, last_rungs, write_points

TASKS = ["a", "b"]


def _points(family: str, seed: int, *, slope: float = 1.0, shift: float = 0.0) -> list[Point]:
    """Metrics rise with the task's weight by `slope`."""
    start = "pretrained" if family == "truth" else "merged"
    return [
        Point(
            family, seed, w, 0, 1.0, 0.0, w, tuple(0.5 + slope * x / 2 + shift for x in w), start
        )
        for w in grid(2, 10)
    ]  # fmt: skip


# Of 20 steps; under way after 5 of them all is the other way round.
ENDS = [
    replace(p, steps=20, rung=1)
    for seed, shift in ((0, -0.01), (1, 0.01))
    for p in _points("truth", seed, shift=shift)
]
TRUTHS = ENDS + [
    replace(p, steps=5, rung=0) for seed in (0, 1) for p in _points("truth", seed, slope=-1)
]
PREVIEWS = [p for s in (0, 1) for p in _points("good", s, slope=0.5)]
PREVIEWS += [p for s in (0, 1) for p in _points("turned", s, slope=-0.5)]


def test_ranks_are_those_of_the_ends() -> None:
    found = task_correlations(ENDS, [*PREVIEWS, *stopped(TRUTHS)])
    assert list(found) == ["good", "turned", "stopped + 5"]
    assert last_rungs(TRUTHS) == ENDS
    for kind, value in (("good", 1.0), ("turned", -1.0), ("stopped + 5", -1.0)):
        for estimate in found[kind]:
            assert estimate is not None
            assert (estimate.value, estimate.low, estimate.high) == pytest.approx((value,) * 3)
            assert estimate.count == 9  # faces don't count


def test_regret_is_what_the_previews_choice_loses() -> None:
    alone = alone_of(ENDS, TASKS)
    assert alone == {"a": pytest.approx(1.0), "b": pytest.approx(1.0)}
    target = next(score for score in scores_of(TASKS) if score.name == "target:a")
    row = judge_score(target, alone, ENDS, PREVIEWS)
    # Truths inside are .55 to .95, in steps of .05.
    assert row.regrets["good"] == pytest.approx(0, abs=1e-12)
    assert row.regrets["turned"] == pytest.approx(0.4)
    assert row.regrets[FINETUNE] == pytest.approx(0, abs=1e-12)
    assert row.regrets["random"] == row.regrets["uniform"] == pytest.approx(0.2)
    assert row.correlations["turned"] == pytest.approx(-1)
    assert row.noise == pytest.approx(0.02 / 2**0.5)
    assert row.variation == pytest.approx(0.05 * 7.5**0.5)
    assert row.varies
    mean = next(score for score in scores_of(TASKS) if score.name == "mean")
    flat = judge_score(mean, alone, ENDS, PREVIEWS)
    assert not flat.varies
    assert flat.regrets["turned"] == pytest.approx(0, abs=1e-9)


def test_regret_of_draws_is_that_of_all_draws() -> None:
    rng = np.random.default_rng(0)
    previews, truths = rng.normal(size=(2, 6))
    for count in (1, 2, 4, 6):
        found = [
            truths.max() - truths[max(draw, key=lambda i: previews[i])]
            for draw in itertools.combinations(range(6), count)
        ]
        expected = float(np.mean(found))
        assert regret_of_draws(previews, truths, count) == pytest.approx(expected)


def test_other_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="good, seed 1 has other interior weights than"):
        markdown(TRUTHS, PREVIEWS[:15], TASKS)


def test_without_corners_there_is_no_relative_score() -> None:
    inner = [t for t in TRUTHS if min(t.weights) > 0]
    assert alone_of(inner, TASKS) is None
    text = markdown(inner, PREVIEWS, TASKS)
    assert "| mean | worst | target:a | target:b |" in text
    assert "relative" not in text


def test_the_command_prints_both_tables(tmp_path: Path) -> None:
    write_points(tmp_path / "truth.csv", TRUTHS, TASKS)
    write_points(tmp_path / "previews.csv", PREVIEWS, TASKS)
    app = studies.judge.typer.Typer()
    app.command()(studies.judge.main)
    result = CliRunner().invoke(app, [str(tmp_path)])
    assert result.exit_code == 0, result.output
    tasks, scores, numbers = result.output.split("\n\n")
    assert "| good | 0% | .125 ± .000 |" in tasks
    assert "| stopped + 5 | 25% |" in tasks
    assert "| another finetune | 100% | .020 |" in tasks
    assert "| turned | .0000 (" in scores
    assert ".4000 (-1.00) |" in scores
    assert [line.split(" | ")[0] for line in numbers.strip().splitlines()[2:]] == [
        "| 1",
        "| 3",
        "| 5",
        "| 9",
    ]
    assert numbers.startswith("| previews, good | mean |")
