"""Searches replayed on made-up tables: what is paid, what is seen, what is written."""

from __future__ import annotations

import csv
import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import optuna
import pytest

import studies.search.page as page
import studies.search.peers as peers
from studies.preview_quality import Point, grid, with_uniform, write_points
from studies.search.methods import METHODS, PARTS
from studies.search.peers import Replay, compare
from studies.search.regret import Curve, Search, difference_table, quartiles, reached
from studies.search.replay import (
    Array,
    Finetunes,
    Landscape,
    Prices,
    Truth,
    resources,
    simplex_weights,
)
from studies.search.tables import Tables, examples_of, read_tables, study_of

TASKS = ("a", "b", "c")
BEST = (0.5, 0.25, 0.25)
PRICES = Prices(
    alone=(1.0, 0.4, 0.5), posteriors=(0.0, 0.3, 0.2), preview=(0.0, 0.05, 0.1), tasks=3
)


def metrics(weights: Array) -> Array:
    """Each task's metric, best at `BEST`, in hundredths."""
    away = np.square(weights - BEST).sum(axis=-1, keepdims=True)
    return np.asarray(np.round(0.8 - 0.4 * away + 0.1 * weights, 2))


@pytest.fixture(scope="module")
def tables() -> Tables:
    weights = np.array(with_uniform(grid(3, 4)))
    ends = metrics(weights)
    rungs = np.stack([ends - 0.2, ends - 0.1, ends])
    return Tables(
        "toy",
        TASKS,
        weights,
        (17, 50, 150),
        np.stack([rungs, rungs - 0.01]),
        ends[None] - 0.1,
        {15: ends[None] - 0.05, 30: ends[None] - 0.02},
        prices=PRICES,
        examples=100,
        batch_size=32,
        sizes=(100, 100, 300),
    )


def test_a_finetune_goes_on_where_it_stopped_and_is_paid_once(tables: Tables) -> None:
    finetunes = Finetunes(tables.landscape("mean"), 0, 2.0)
    begun = finetunes.begin(finetunes.nearest([2, 1, 1]))
    at_rung = begun.train(0)
    assert finetunes.spent == pytest.approx([17 / 150] * 3)
    assert not finetunes.truths
    assert begun.train() - at_rung == pytest.approx(0.2)
    begun.train()
    assert finetunes.spent == pytest.approx([1.0] * 3)
    assert [t.costs for t in finetunes.truths] == [pytest.approx((1.0, 1.0, 1.0))]
    finetunes.begin(0).train(free=True)
    assert finetunes.spent == pytest.approx([1.0] * 3)
    finetunes.begin(0).train()  # a task alone reads one task's examples
    assert finetunes.spent == pytest.approx([2.0, 1.4, 1.5])
    finetunes.begin(finetunes.nearest([1, 1, 0])).train(0)
    assert finetunes.spent == pytest.approx(
        np.array([2.0, 1.4, 1.5]) + 17 / 150 * PRICES.finetune(2)
    )
    assert PRICES.finetune(2) == pytest.approx([1, 0.7, 0.75])
    assert finetunes.record.ends == [1, 0, 3]
    assert not finetunes.is_over  # it is when every axis has spent the budget
    finetunes.pay([0, 0.6, 0.5])
    assert finetunes.is_over


def test_a_search_sees_one_seed_and_is_judged_by_the_others(tables: Tables) -> None:
    landscape = tables.landscape("mean")
    for search in range(4):
        finetunes = Finetunes(landscape, search, 1.0)
        seen = landscape.values[search % 2, -1]
        assert all(finetunes.begin(p).train() == seen[p] for p in (0, 3, 7))
        assert landscape.judged(search) == pytest.approx(landscape.values[1 - search % 2, -1])
    three = replace(landscape, values=np.random.default_rng(0).normal(size=(3, 1, 16)))
    assert three.judged(4) == pytest.approx(three.values[[0, 2], -1].mean(0))
    alone = replace(landscape, values=landscape.values[:1])
    assert alone.judged(1) == pytest.approx(alone.truth)  # nobody else is there


def test_noise_is_that_inside_the_simplex() -> None:
    weights = np.array([[1.0, 0.0], [0.5, 0.5]])
    values = np.array([[[0.1, 0.5]], [[0.9, 0.52]]])
    landscape = Landscape(weights, (10,), values, replace(PRICES, tasks=2))
    assert landscape.noise == pytest.approx(0.02 / 2**0.5)


def test_rungs_are_real_thirds_to_a_pruner_and_searches_stop_at_each(tables: Tables) -> None:
    assert resources(3) == [1, 3, 9]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rng = np.random.default_rng(0)
    noisy = replace(tables, truths=tables.truths + 0.05 * rng.normal(size=tables.truths.shape))
    for method in ("TPE + Hyperband", "TPE + Hyperband (-log u)"):
        ends = np.sum([METHODS[method](noisy, "mean", s, 12.0).record.ends for s in range(6)], 0)
        assert ends.min() > 0, f"{method} ended so many at the rungs: {ends}"


def test_in_the_published_searches_every_rung_ends_some() -> None:
    """The fault was that none did: 17 times 3 is 51, not 50."""
    results = Path(peers.__file__).with_name("results")
    for path in (results / f"{suite}-costs.csv" for suite in page.SHOWN):  # with all peers
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        rungs = [column for column in rows[0] if column.startswith("ends_at_")]
        assert len(rungs) == 3, path
        for method in ("TPE + Hyperband", "SMAC", "ASHA", "BOHB"):
            mine = [row for row in rows if row["method"].startswith(method)]
            assert mine, f"{path} has no searches by {method}"
            for row in mine:
                assert all(int(row[rung]) > 0 for rung in rungs), (path, row)


def test_logarithms_are_uniform_on_the_simplex() -> None:
    numbers = np.random.default_rng(0).uniform(size=(4000, 3))
    found = np.array([simplex_weights(u) for u in numbers])
    assert found.sum(1) == pytest.approx(1)
    assert found.mean(0) == pytest.approx([1 / 3] * 3, abs=0.02)
    # Of the simplex a hundredth has a weight above .9 of one of three tasks each.
    assert (found > 0.9).mean(0) == pytest.approx([0.01] * 3, abs=0.006)
    cube = numbers / numbers.sum(1, keepdims=True)
    assert (cube > 0.9).mean() < (found > 0.9).mean() / 2
    assert simplex_weights([0.5] * 3) == pytest.approx([1 / 3] * 3)
    assert np.isfinite(simplex_weights([0.0, 1.0, 0.5])).all()


def test_the_nearest_point_is_that_of_the_normalised_numbers(tables: Tables) -> None:
    finetunes = Finetunes(tables.landscape("mean"), 0, 1.0)
    assert tuple(tables.weights[finetunes.nearest([0.8, 0.4, 0.42])]) == BEST
    assert tuple(tables.weights[finetunes.nearest([0.01, 0, 0])]) == (1, 0, 0)
    assert tables.weights[finetunes.nearest([0, 0, 0])] == pytest.approx([1 / 3] * 3)
    tied = {tuple(tables.weights[finetunes.nearest([1, 3, 0])]) for _ in range(50)}
    assert tied == {(0.25, 0.75, 0)}
    tied = {tuple(tables.weights[finetunes.nearest([3, 5, 0])]) for _ in range(50)}
    assert tied == {(0.25, 0.75, 0), (0.5, 0.5, 0)}


def test_a_search_is_worth_what_looked_best_so_far() -> None:
    values = np.array([[[0.5, 0.9]], [[0.7, 0.3]]])
    landscape = Landscape(np.eye(2), (10,), values, replace(PRICES, tasks=2))
    truths = [
        Truth((1.0, 1.0, 1.1), 0, 0.5),
        Truth((2.0, 1.5, 2.2), 1, 0.9),
        Truth((3.0, 2.0, 3.3), 0, 0.7),
    ]
    found = Search.of(truths, landscape, 0)
    assert found.costs == ((1, 2), (1, 1.5), (1.1, 2.2))
    # The best mean is .6; seed 1 judges what seed 0 has seen.
    assert found.regrets == pytest.approx((-0.1, 0.3))
    worse = Search(((1.0, 4.0), (1.0, 3.0), (2.0, 5.0)), (0.3, 0.1))
    assert worse.at(np.array([0.5, 1.0, 3.9, 4.0])).tolist() == pytest.approx(
        [math.nan, 0.3, 0.3, 0.1], nan_ok=True
    )
    assert (worse.cost_until(0.1), worse.cost_until(0.05)) == (4.0, math.inf)
    assert (worse.cost_until(0.1, 1), worse.cost_until(0.1, 2)) == (3.0, 5.0)
    back = Search(((1.0, 2.0, 3.0),) * 3, (0.1, 0.3, 0.0))
    assert back.cost_until(0.1) == 3.0  # what was lost again does not count
    early = Search(((2.0,), (2.0,), (2.0,)), (0.0,))
    assert quartiles([worse, worse, early], 0.1) == (2.0, 4.0, 4.0)
    assert reached([worse, early], 0.05, 10) == 0.5
    assert reached([worse, early], 0.05, 1) == 0.0
    rows = difference_table({"ours": [early, early], "TPE": [worse, back]}, "ours", 4.0)
    assert "| TPE | -0.0500 | 0.0500 | 2 |" in rows
    curve = Curve.of([worse, Search(((2.0,),) * 3, (0.1,))], np.array([1.0, 3.0]))
    assert math.isnan(curve.mean[0])  # one of them has no truth yet
    assert curve.mean[1] == pytest.approx(0.2)
    assert curve.low[1] == pytest.approx(0.1)


def test_shares_tell_the_number_of_examples() -> None:
    assert examples_of([0.81, 0.5266667, 0.5933333]) == 300
    with pytest.raises(ValueError, match="no shares"):
        examples_of([1 / math.pi, 1 / math.e, math.sqrt(0.5), math.log(2)])


@pytest.mark.parametrize("method", METHODS | PARTS)
def test_every_method_pays_for_what_it_sees(
    tables: Tables, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("studies.search.methods.PREVIEWS", 12)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    finetunes = (METHODS | PARTS)[method](tables, "mean", 1, 6.0)
    truths = finetunes.truths
    costs = [t.costs for t in truths]
    assert costs == sorted(costs)
    assert all(t.seen == tables.landscape("mean").values[1, -1, t.point] for t in truths)
    if method in ("uniform", "proportional", "quadratic"):
        assert len(truths) == 1
    elif method == "doubling rule":
        assert len(truths) < 6  # it ends in a corner
        assert len({t.point for t in truths}) == len(truths)
    elif method != "ours until flat":
        assert finetunes.spent.min() > 6.0 - 1e-6
        if not method.startswith("ours"):  # whose previews go on behind the last finetune
            assert min(costs[-1]) > 6.0 - 1e-6
    with_previews = method in ("best previews", "quadratic") or method.startswith("ours")
    assert (costs[0][0] >= 4.0) == with_previews
    first = tables.weights[truths[0].point]
    if method == "proportional":
        assert first == pytest.approx([0.25, 0.25, 0.5])
    elif method == "own-weight curve":
        assert costs[2] == pytest.approx((3.0, 1.2, 1.5))
        assert tables.weights[truths[3].point] == pytest.approx([1 / 3] * 3)
    elif not with_previews:
        assert first == pytest.approx([1 / 3] * 3)
    if method == "ours":
        # The task runs and posteriors, and a preview before each of the first finetunes: uniform
        # weights, then the task runs, which are there.
        expected = [PRICES.task_runs + PRICES.posteriors + np.array([1, 1, 1])] * 4
        expected = [e + (i + 1) * np.array(PRICES.preview) for i, e in enumerate(expected)]
        assert np.array(costs[:4]) == pytest.approx(np.array(expected))
        assert costs[4][0] == pytest.approx(5), "the first that was promoted"
    if method == "best previews":
        assert costs[0] == pytest.approx(
            PRICES.task_runs + PRICES.posteriors + 12 * np.array(PRICES.preview) + 1
        )


def test_ranks_are_those_inside_the_simplex(tables: Tables) -> None:
    assert tables.ranks("mean").keys() == {
        "previews",
        "15 steps from the merge",
        "30 steps from the merge",
        "finetunes at step 17",
        "finetunes at step 50",
        "another seed",
    }
    weights = np.array(with_uniform(grid(3, 6)))
    turned = replace(
        tables,
        weights=weights,
        truths=np.stack([np.stack([metrics(weights)] * 3)] * 2),
        previews=-metrics(weights)[None],
        refined={15: metrics(weights)[None]},
    )
    ranks = turned.ranks("mean")
    assert ranks["previews"] == pytest.approx(-1)
    assert ranks["15 steps from the merge"] == ranks["another seed"] == pytest.approx(1)


def test_the_study_is_the_folder_above_its_results() -> None:
    assert study_of(Path("studies/digits/results")) == "digits"
    assert study_of(Path("studies/digits/results/tenths")) == "digits"
    assert study_of(Path("elsewhere/digits")) == "elsewhere"


def write(folder: Path, tables: Tables, corners: bool = True) -> None:
    """The files of a study."""
    points = [
        (i, tuple(w)) for i, w in enumerate(tables.weights.tolist()) if corners or max(w) < 1
    ]
    truths, previews = [], []
    for i, w in points:
        for seed, rungs in enumerate(tables.truths):
            for steps, found in zip(tables.steps, rungs):
                values = tuple(found[i].tolist())
                truths.append(Point("truth", seed, w, steps, 1.0, 0.0, values, values))
        levels = {0: tables.previews[0], **{s: v[0] for s, v in tables.refined.items()}}
        for steps, found in levels.items():
            values = tuple(found[i].tolist())
            batch = 32 if steps else 0
            previews.append(
                Point("diagonal", 0, w, steps, 1.0, 0.0, values, values, "merged", batch)
            )
    write_points(folder / "truth.csv", truths, TASKS)
    write_points(folder / "previews.csv", previews, TASKS)
    about = {
        "definition": {"finetuning": {"batch_size": 32}},
        "training_examples": list(tables.sizes),
    }
    (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")
    prices = {"prices": asdict(tables.prices)}
    (folder / "prices.json").write_text(json.dumps(prices), encoding="utf-8")


def test_tables_are_read_as_they_were_written(tables: Tables, tmp_path: Path) -> None:
    folder = tmp_path / "toy" / "results"
    folder.mkdir(parents=True)
    write(folder, tables)
    found = read_tables(folder)
    for name in ("weights", "truths", "previews"):
        assert getattr(found, name) == pytest.approx(getattr(tables, name))
    assert found.refined.keys() == tables.refined.keys()
    assert found.refined[30] == pytest.approx(tables.refined[30])
    names = ("name", "tasks", "steps", "prices", "examples", "batch_size", "sizes")
    assert [getattr(found, n) for n in names] == [getattr(tables, n) for n in names]
    assert Landscape.from_json(found.landscape("mean").as_json()).prices == tables.prices
    alone = tables.truths[:, -1, 0, 0].mean()
    assert found.alone == pytest.approx(
        {
            "a": alone,
            "b": found.truths[:, -1, -6, 1].mean(),
            "c": found.truths[:, -1, -2, 2].mean(),
        }
    )
    with pytest.raises(ValueError, match="no previews of 'kronecker'"):
        read_tables(folder, "kronecker")
    write(folder, tables, corners=False)
    assert read_tables(folder).landscape("worst").truth.max() == pytest.approx(0.815)
    with pytest.raises(ValueError, match="needs finetunes of each task alone"):
        read_tables(folder).landscape("relative")
    (folder / "prices.json").unlink()
    with pytest.raises(ValueError, match=r"no prices.json; measure .* studies/toy/optimize.py"):
        read_tables(folder)


def test_a_comparison_is_written_and_gone_on_with(
    tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(peers.FOLDER, raising=False)
    folder, out = tmp_path / "toy" / "results", tmp_path / "out"
    folder.mkdir(parents=True)
    out.mkdir()
    write(folder, tables)
    replay = Replay(folder, "diagonal", 6.0)
    methods = ["uniform", "random", "quadratic", "SMAC"]
    seeds = {"uniform": 3, "random": 3, "quadratic": 3, "SMAC": 3}
    text = compare(replay, out, ["mean", "relative"], methods, seeds, processes=1)
    assert "| quadratic | 3 | 4.0 (4.0 to 4.0) | 4.5 | 6.7 | 100% |" in text
    assert "SMAC" not in text  # nowhere installed
    with (out / "toy.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(r["score"], r["method"], r["seed"]) for r in rows} == {
        (score, method, str(seed))
        for score in ("mean", "relative")
        for method in methods[:3]
        for seed in range(3)
    }
    assert ElementTree.parse(out / "toy.svg").getroot().get("width")
    assert (out / "toy.md").read_text(encoding="utf-8") == f"{text}\n"

    def refuse(*given: object) -> None:
        raise AssertionError("it was there")

    monkeypatch.setattr(peers, "run_here", refuse)
    assert compare(replay, out, ["mean", "relative"], methods, seeds, processes=1) == text
