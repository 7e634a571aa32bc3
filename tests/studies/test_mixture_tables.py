"""Weights, and tables of the mixture study, on made-up losses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from studies.mixture.data import TASKS
from studies.mixture.optimize import EXAMPLES, WORST_EXCESS
from studies.mixture.tables import Ranks, Tables, regrets, report, scores
from studies.mixture.truths import CHOOSING
from studies.mixture.weights import drawn_weights, fixed_weights
from studies.preview_quality import TRUTH, Point, write_points

NAMES = list(TASKS)


def test_drawn_weights_are_of_all_tasks_and_of_some_in_turn() -> None:
    found = drawn_weights(NAMES, 6, 4)
    active = [sum(x > 0 for x in w) for w in found]
    assert active == [6, 2, 6, 3, 6, 4, 6, 5, 6, 6]
    assert all(sum(w) == 1.0 for w in found)
    assert len(set(found)) == 10
    more = drawn_weights(NAMES, 9, 9)
    assert set(found) <= set(more), "fewer are the first of more"
    assert set(found).isdisjoint(drawn_weights(NAMES, 6, 4, seed=1))


def test_fixed_weights() -> None:
    uniform, *alone, sizes = fixed_weights(NAMES, EXAMPLES)
    assert max(uniform) - min(uniform) < 1e-12
    assert [w.index(1.0) for w in alone] == list(range(6))
    italian = NAMES.index("italian")
    assert sizes[italian] == pytest.approx(sizes[0] / 10)


def test_the_worst_excess_is_that_over_the_task_alone() -> None:
    score = WORST_EXCESS({"a": 3.0, "b": 5.0}, {"a": 2.5, "b": 5.0})
    assert score == pytest.approx(0.5)
    assert not WORST_EXCESS.maximize
    both = WORST_EXCESS.over(np.array([[3.0, 5.0], [2.5, 5.7]]), {"a": 2.5, "b": 5.0})
    assert both == pytest.approx([0.5, 0.7])


def losses(weights: tuple[float, ...]) -> np.ndarray:
    """A task's loss falls with its own weight; Spanish helps Italian."""
    own = np.array(weights)
    own[NAMES.index("italian")] += 0.5 * own[NAMES.index("spanish")]
    return np.asarray(6 - np.sqrt(own) + 0.1 * np.arange(6))


def made_point(family: str, seed: int, weights: tuple[float, ...], noise: float) -> Point:
    rng = np.random.default_rng([seed, *(int(1e6 * w) for w in weights)])
    found = tuple((losses(weights) + noise * rng.standard_normal(6)).tolist())
    return Point(family, seed, weights, 27, 1.0, 0.0, found, found)


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    fixed, drawn = fixed_weights(NAMES, EXAMPLES), drawn_weights(NAMES, 12, 8)
    truths = [made_point(TRUTH, 0, w, 0.001) for w in (*fixed, *drawn)]
    truths += [made_point(TRUTH, CHOOSING, w, 0.001) for w in (*fixed[:-1], *drawn[:6])]
    doubled = (1 / 7, 1 / 7, 1 / 7, 1 / 7, 2 / 7, 1 / 7)
    truths += [made_point(TRUTH, seed, doubled, 0.001) for seed in (0, CHOOSING)]
    write_points(tmp_path / "truth.csv", truths, NAMES)
    write_points(tmp_path / "test.csv", truths, NAMES)
    previews = [
        made_point(family, CHOOSING, w, noise)
        for family, noise in (("isotropic", 0.2), ("diagonal", 0.01))
        for w in (*fixed, *drawn, doubled)
    ]
    write_points(tmp_path / "previews.csv", previews, NAMES)
    return Tables.read(tmp_path)


def test_tables_are_read_as_what_they_are(tables: Tables) -> None:
    assert len(tables.drawn) == 21
    assert tables.fixed[0] == pytest.approx([1 / 6] * 6, abs=1e-6)
    assert [w.index(1.0) for w in tables.fixed[1:]] == list(range(6))
    curve = tables.curve(tables.fixed)
    known = np.array([tables.truths[CHOOSING][w] for w in tables.fixed])
    assert curve[0] == pytest.approx(known[0], abs=1e-6)
    assert curve[1:].diagonal() == pytest.approx(known[1:].diagonal())


def test_true_previews_rank_better_than_noisy_ones(tables: Tables) -> None:
    truth = np.array([tables.truths[0][w] for w in tables.drawn])
    good, bad = (
        Ranks.of(np.array([tables.previews[f][w] for w in tables.drawn]), truth, 200)
        for f in ("diagonal", "isotropic")
    )
    assert good.values.shape == (201, 8)
    assert good.values[0, -1] > 0.95 > bad.values[0, -1]
    low = np.quantile(good.less(bad).values[1:, -1], 0.05)
    assert low > 0


def test_regrets_are_of_what_each_rule_chooses(tables: Tables) -> None:
    found = regrets(tables, scores(tables)["target: italian"])
    assert found["diagonal"].startswith("0.0"), found
    values = {rule: float(cell.split(" / ")[0]) for rule, cell in found.items()}
    assert min(values.values()) >= 0
    assert values["diagonal"] < values["uniform"]
    assert values["diagonal"] < values["random"]
    assert values["doubling rules, best of 2 finetunes"] < values["uniform"]
    text = report(tables)
    assert text.count("beyond own weight") == 1
    assert "diagonal less averaging" in text
    (best,) = [line for line in text.split("\n") if line.startswith("| target: italian | ") and
               line.count("|") == 9]  # fmt: skip
    cells = [float(cell) for cell in best.strip("| ").split(" | ")[1:]]
    chosen = min(tables.truths[0], key=lambda w: tables.truths[0][w][4])
    assert cells[1:] == pytest.approx(chosen, abs=0.006)
    assert cells[0] == pytest.approx(tables.truths[0][chosen][4], abs=1e-4)
