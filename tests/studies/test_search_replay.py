"""Searches replayed on made-up tables: what is paid, what is seen, what is written."""

from __future__ import annotations

import csv
import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest

import studies.search.peers as peers
from studies.preview_quality import Point, grid, write_csv, write_points
from studies.search.methods import METHODS
from studies.search.peers import Replay, compare
from studies.search.regret import Curve, Search, quartiles, reached
from studies.search.replay import Array, Finetunes, Landscape, Truth
from studies.search.tables import Tables, examples_of, read_tables, study_of

TASKS = ("a", "b", "c")
BEST = (0.5, 0.25, 0.25)


def metrics(weights: Array) -> Array:
    """Each task's metric, best at `BEST`, in hundredths."""
    away = np.square(weights - BEST).sum(axis=-1, keepdims=True)
    return np.asarray(np.round(0.8 - 0.4 * away + 0.1 * weights, 2))


@pytest.fixture(scope="module")
def tables() -> Tables:
    weights = np.array(grid(3, 4))
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
        task_run_steps=450,
        examples=100,
        batch_size=32,
    )


def test_a_finetune_goes_on_where_it_stopped_and_is_paid_once(tables: Tables) -> None:
    finetunes = Finetunes(tables.landscape("mean"), 0, 2.0)
    begun = finetunes.begin(finetunes.nearest([2, 1, 1]))
    at_rung = begun.train(0)
    assert finetunes.spent == pytest.approx(17 / 150)
    assert not finetunes.truths
    assert begun.train() - at_rung == pytest.approx(0.2)
    begun.train()
    assert finetunes.spent == pytest.approx(1.0)
    assert [t.cost for t in finetunes.truths] == [pytest.approx(1.0)]
    finetunes.begin(0).train(free=True)
    assert finetunes.spent == pytest.approx(1.0)
    finetunes.spend(150)
    assert finetunes.is_over


def test_the_nearest_point_is_that_of_the_normalised_numbers(tables: Tables) -> None:
    finetunes = Finetunes(tables.landscape("mean"), 0, 1.0)
    assert tuple(tables.weights[finetunes.nearest([0.8, 0.4, 0.42])]) == BEST
    assert tuple(tables.weights[finetunes.nearest([0.01, 0, 0])]) == (1, 0, 0)
    tied = {tuple(tables.weights[finetunes.nearest([0, 0, 0])]) for _ in range(50)}
    assert tied == {(0.5, 0.25, 0.25), (0.25, 0.5, 0.25), (0.25, 0.25, 0.5)}


def test_a_search_is_worth_what_looked_best_so_far() -> None:
    landscape = Landscape(np.eye(2), (10,), np.array([[[0.5, 0.6]], [[0.7, 0.6]]]))
    assert landscape.noise == pytest.approx(0.1)
    landscape = replace(landscape, values=np.array([[[0.5, 0.9]], [[0.7, 0.3]]]))
    found = Search.of([Truth(1, 0, 0.5), Truth(2, 1, 0.9), Truth(3, 0, 0.7)], landscape)
    assert found.costs == (1, 2)
    assert found.regrets == pytest.approx((0, 0))
    worse = Search((1.0, 4.0), (0.3, 0.1))
    assert worse.at(np.array([0.5, 1.0, 3.9, 4.0])).tolist() == pytest.approx(
        [math.nan, 0.3, 0.3, 0.1], nan_ok=True
    )
    assert (worse.cost_until(0.1), worse.cost_until(0.05)) == (4.0, math.inf)
    assert quartiles([worse, worse, Search((2.0,), (0.0,))], 0.1) == (2.0, 4.0, 4.0)
    assert reached([worse, found], 0.05, 10) == 0.5
    curve = Curve.of([worse, Search((2.0,), (0.1,))], np.array([1.0, 3.0]))
    assert math.isnan(curve.mean[0])  # one of them has no truth yet
    assert curve.mean[1] == pytest.approx(0.2)
    assert curve.low[1] == pytest.approx(0.1)


def test_shares_tell_the_number_of_examples() -> None:
    assert examples_of([0.81, 0.5266667, 0.5933333]) == 300
    with pytest.raises(ValueError, match="no shares"):
        examples_of([1 / math.pi, 1 / math.e, math.sqrt(0.5), math.log(2)])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_pays_for_what_it_sees(
    tables: Tables, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("studies.search.methods.PREVIEWS", 12)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    truths = METHODS[method](tables, "mean", 1, 6.0)
    costs = [t.cost for t in truths]
    assert costs == sorted(costs)
    assert all(t.seen in tables.landscape("mean").values[:, -1, t.point] for t in truths)
    if method in ("uniform", "quadratic"):
        assert len(truths) == 1
    else:
        assert costs[-1] > 6.0 - 1e-6
    with_previews = method in ("best previews", "quadratic") or method.startswith("ours")
    assert (costs[0] >= 4.0) == with_previews
    if not with_previews:
        assert set(tables.weights[truths[0].point]) == {0.25, 0.5}
    if method == "ours":
        # uniform weights, then the task runs, which are there
        assert costs[:5] == pytest.approx([4, 4, 4, 4, 5])
    if method == "ours with a rung":
        assert costs[:4] == pytest.approx([4.1] * 4)
        assert costs[4] > 5.1  # some refined previews of others beside


def test_ranks_are_those_inside_the_simplex(tables: Tables) -> None:
    assert tables.ranks("mean").keys() == {
        "previews",
        "15 steps from the merge",
        "30 steps from the merge",
        "finetunes at step 17",
        "finetunes at step 50",
        "another seed",
    }
    weights = np.array(grid(3, 6))
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
    write_csv(
        folder / "cost.csv", [["family", "posterior_seed", "task_run_steps"], ["diagonal", 0, 450]]
    )
    about = {"definition": {"finetuning": {"batch_size": 32}}}
    (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")


def test_tables_are_read_as_they_were_written(tables: Tables, tmp_path: Path) -> None:
    folder = tmp_path / "toy" / "results"
    folder.mkdir(parents=True)
    write(folder, tables)
    found = read_tables(folder)
    for name in ("weights", "truths", "previews"):
        assert getattr(found, name) == pytest.approx(getattr(tables, name))
    assert found.refined.keys() == tables.refined.keys()
    assert found.refined[30] == pytest.approx(tables.refined[30])
    names = ("name", "tasks", "steps", "task_run_steps", "examples", "batch_size")
    assert [getattr(found, n) for n in names] == [getattr(tables, n) for n in names]
    alone = tables.truths[:, -1, 0, 0].mean()
    assert found.alone == pytest.approx(
        {
            "a": alone,
            "b": found.truths[:, -1, -5, 1].mean(),
            "c": found.truths[:, -1, -1, 2].mean(),
        }
    )
    with pytest.raises(ValueError, match="no previews of 'kronecker'"):
        read_tables(folder, "kronecker")
    write(folder, tables, corners=False)
    assert read_tables(folder).landscape("worst").truth.max() == pytest.approx(0.815)
    with pytest.raises(ValueError, match="needs finetunes of each task alone"):
        read_tables(folder).landscape("relative")


def test_a_comparison_is_written_and_gone_on_with(
    tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(peers.FOLDER, raising=False)
    folder, out = tmp_path / "toy" / "results", tmp_path / "out"
    folder.mkdir(parents=True)
    out.mkdir()
    write(folder, tables)
    replay = Replay(folder, "diagonal", 6.0, 8.0)
    methods = ["uniform", "random", "quadratic", "SMAC"]
    text = compare(replay, out, ["mean", "relative"], methods, seeds=3, processes=1)
    assert "| quadratic | 4.0 (4.0 to 4.0) | 100% |" in text
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
    assert compare(replay, out, ["mean", "relative"], methods, seeds=3, processes=1) == text
