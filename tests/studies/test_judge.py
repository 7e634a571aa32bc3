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
    judge,
    judge_score,
    regret_of_draws,
    scores_of,
    stopped,
    summary,
    task_correlations,
    worst_task,
)
from studies.preview_quality import (
    FINETUNE,
    Point,
    grid,
    last_rungs,
    with_uniform,
    write_points,
)

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


def test_choices_are_made_on_validation_data_and_judged_on_test_data() -> None:
    alone = alone_of(ENDS, TASKS)
    assert alone is not None
    target = next(score for score in scores_of(TASKS) if score.name == "target:a")
    # On test data the less weight the better: what chooses by validation data loses all there is.
    tests = [replace(p, metrics=p.metrics[::-1]) for p in ENDS]
    row = judge_score(target, alone, ENDS, PREVIEWS, tests=tests)
    assert row.regrets[FINETUNE] == pytest.approx(0.4)
    assert row.regrets["good"] == pytest.approx(0.4)
    assert row.regrets["turned"] == pytest.approx(0, abs=1e-12)
    text = judge(TRUTHS, PREVIEWS, TASKS, tests=tests).text
    assert text.startswith(judge(TRUTHS, PREVIEWS, TASKS).text)
    assert "\nOn test data:\n" in text


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
        judge(TRUTHS, PREVIEWS[:15], TASKS)


def test_without_corners_there_is_no_relative_score() -> None:
    inner = [t for t in TRUTHS if min(t.weights) > 0]
    assert alone_of(inner, TASKS) is None
    text = judge(inner, PREVIEWS, TASKS).text
    assert "| mean | worst | target:a | target:b |" in text
    assert "relative" not in text


def test_the_command_prints_both_tables(tmp_path: Path) -> None:
    write_points(tmp_path / "truth.csv", TRUTHS, TASKS)
    write_points(tmp_path / "previews.csv", PREVIEWS, TASKS)
    app = studies.judge.typer.Typer()
    app.command()(studies.judge.main)
    result = CliRunner().invoke(app, [str(tmp_path)])
    assert result.exit_code == 0, result.output
    tasks, beyond, scores, numbers = result.output.split("\n\n")
    assert beyond.startswith("| beyond own weight | a | b |")
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


RING = grid(3, 8)
NAMES = ["a", "b", "c"]


def test_what_others_do_to_a_task_is_told_in_noises() -> None:
    # Task a is what b and c leave of it, which its own weight does not say; b is its own weight.
    def metrics(w: np.ndarray) -> np.ndarray:
        return np.array([0.5 + w[1] * w[2], w[1], w[2]])

    truths = [p for seed in (0, 1) for p in _ring("truth", seed, metrics, noise=0.01 * seed)]
    text = judge(truths, _ring("same", 0, metrics), NAMES).text
    row = next(line for line in text.splitlines() if line.startswith("| moved by others"))
    a, b, c = map(float, row.strip("| ").split(" | ")[1:])
    assert a > 3
    assert max(b, c) < 0.5


def _ring(family: str, seed: int, metrics: object, noise: float = 0.0) -> list[Point]:
    """Points at eighths of three tasks; `metrics` of the weights, noise of the seed on top."""
    rng = np.random.default_rng([seed, 7])
    start = "pretrained" if family == "truth" else "merged"
    found = []
    for w in with_uniform(RING):
        values = metrics(np.array(w)) + noise * rng.normal(size=3)  # type: ignore[operator]
        steps = 20 if family == "truth" else 0
        found.append(Point(family, seed, w, steps, 1.0, 0.0, w, tuple(values.tolist()), start))
    return found


def _lagging(w: np.ndarray) -> np.ndarray:
    """Task c learns least from its weight: the worst task wants most of it."""
    return np.array([0.9, 0.8, 0.3]) * (1 - np.exp(-5 * w))


def test_simple_rules_choose_by_one_seed_and_are_judged_by_the_others() -> None:
    truths = [p for seed in (0, 1) for p in _ring("truth", seed, _lagging)]
    previews = _ring("opposite", 0, lambda w: _lagging(w[::-1]))
    row = judge_score(
        scores_of(NAMES)[2], alone_of(truths, NAMES) or {}, truths, previews, [100, 100, 800]
    )
    assert row.name == "worst"
    regrets = row.regrets
    assert regrets["uniform"] > regrets["doubling rule, 3 finetunes"] > 0
    assert regrets["doubling rule, 4 finetunes"] == pytest.approx(0, abs=0.02)
    # Metrics are functions of own weight alone here: the curve needs nothing else.
    assert regrets["own-weight curve"] == pytest.approx(0, abs=0.02)
    # A tenth, a tenth and the rest.
    assert regrets["proportional to data"] < regrets["uniform"]
    assert regrets["opposite"] > regrets["random"]
    equal = judge_score(
        scores_of(NAMES)[2], alone_of(truths, NAMES) or {}, truths, previews, [100, 100, 100]
    )
    assert "proportional to data" not in equal.regrets  # that is uniform weights


def test_uniform_weights_are_judged_only_where_they_were_finetuned() -> None:
    truths = [p for p in _ring("truth", 0, _lagging) if max(p.weights) - min(p.weights) > 1e-6]
    row = judge_score(scores_of(NAMES)[2], alone_of(truths, NAMES) or {}, truths, [])
    assert set(row.regrets) == {"random"}  # nearest to uniform is not uniform


def test_the_worst_task_is_that_of_the_score() -> None:
    metrics = np.array([0.9, 0.5, 0.4])
    alone = [1.0, 1.0, 0.5]
    assert worst_task("worst", metrics, alone, NAMES) == 2
    assert worst_task("worst_relative", metrics, alone, NAMES) == 1
    assert worst_task("target:a", metrics, alone, NAMES) == 0
    assert worst_task("worst", metrics, alone, NAMES, greater_is_better=False) == 0  # losses


def test_regrets_of_several_folders_are_averaged_in_units_of_noise() -> None:
    truths = [p for seed in (0, 1) for p in _ring("truth", seed, _lagging, noise=0.01)]
    verdict = judge(truths, _ring("opposite", 0, lambda w: _lagging(w[::-1])), NAMES)
    lines = summary([verdict, verdict]).splitlines()
    assert lines[0] == (
        "|  | regret / noise, 8 means and worsts | largest | regret / noise, 6 targets | largest |"
    )
    found = {line.split(" | ")[0].removeprefix("| "): line for line in lines[2:]}
    values = [row.regrets["opposite"] / row.noise for row in verdict.scores]
    assert f"| {np.mean(values[:4]):.2f} ± " in found["opposite"]
    assert f"| {np.mean(values[4:]):.2f} ± " in found["opposite"]
    assert f"| {max(values[4:]):.2f} |" in found["opposite"]
    assert found["best merge"].split(" | ")[1:] == found["opposite"].split(" | ")[1:]
    curve = found["own-weight curve"].split(" | ")[1].split(" ± ")[0]
    assert float(curve) < np.mean(values[:4])
