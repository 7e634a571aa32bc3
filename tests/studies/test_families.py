"""The table of preview quality: its arithmetic on made-up points, and a whole toy run."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import toy_definition

from optuna_merge.definition import PosteriorSettings
from optuna_merge.finetuning import FinetuneSettings
from studies.families import compare, parse_family
from studies.ladder import Ladder
from studies.preview_quality import (
    FINETUNE,
    Point,
    Weights,
    as_written,
    format_qualities,
    grid,
    last_rungs,
    qualities,
    read_points,
    with_uniform,
    write_points,
)
from studies.weightings import scattered

INSIDE = [(0.5, 0.5), (0.25, 0.75), (0.75, 0.25), (0.4, 0.6), (0.6, 0.4)]


def _point(family: str, seed: int, weights: Weights, loss: float, metric: float) -> Point:
    return Point(family, seed, weights, 0, 1.0, metric, (loss, 2 * loss), (metric, metric))


def test_the_grid_has_every_weighting_once() -> None:
    weightings = grid(3, 5)
    assert len(weightings) == len(set(weightings)) == 21
    assert weightings[0] == (1.0, 0.0, 0.0)
    assert all(sum(weights) == 1.0 for weights in weightings)
    assert sum(min(weights) > 0 for weights in weightings) == 6
    assert grid(1, 4) == [(1.0,)]
    assert grid(2, 2) == [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]


@pytest.mark.parametrize(("tasks", "divisions", "more"), [(4, 6, 1), (4, 4, 0), (3, 10, 1)])
def test_uniform_weights_are_added_to_a_grid_that_lacks_them(
    tasks: int, divisions: int, more: int
) -> None:
    weightings = grid(tasks, divisions)
    found = with_uniform(weightings)
    assert found[: len(weightings)] == weightings
    assert len(found) == len(weightings) + more
    assert any(w == pytest.approx([1 / tasks] * tasks) for w in found)


def test_weights_that_were_read_are_found_again(tmp_path: Path) -> None:
    # 364 thousandths of 1.002 are .36327345..., which is rounded up twice to six digits.
    weights = (364 / 1002, 638 / 1002)
    write_points(tmp_path / "truth.csv", [_point("truth", 0, weights, 1.0, 0.5)], ["a", "b"])
    (read,), _ = read_points(tmp_path / "truth.csv")
    assert read.weights == as_written(weights) == as_written(read.weights)


def test_errors_gaps_and_ranks_of_interior_points() -> None:
    truths = [
        _point("truth", seed, w, 1.0, w[0] + (0.1 if seed else -0.1))
        for w in INSIDE
        for seed in (0, 1)
    ]
    previews = [
        _point(family, seed, w, 1.0 + shift, sign * w[0])
        for family, sign in (("good", 1), ("turned", -1))
        for seed, shift in ((0, 0.2), (1, 0.4))
        for w in INSIDE
    ]
    # A task alone is no interior point: however wrong, it must not count.
    truths.append(_point("truth", 0, (1.0, 0.0), 0.0, 0.0))
    previews.append(_point("good", 0, (1.0, 0.0), 99.0, 99.0))
    noise, good, turned = qualities(truths, previews)

    assert (noise.kind, noise.seeds) == (FINETUNE, 2)
    assert noise.error == pytest.approx(0.2)
    assert noise.correlations == pytest.approx((1, 1, 1))

    mean_shift = sum(w[0] + 2 * w[1] for w in INSIDE) / len(INSIDE)
    assert (good.kind, good.seeds) == ("good", 2)
    assert good.error == pytest.approx(0, abs=1e-12)
    assert good.gap == pytest.approx(0.3 * mean_shift)
    assert good.gap_spread == pytest.approx(0.2 / math.sqrt(2) * mean_shift)
    assert turned.bias == pytest.approx(-1)
    assert turned.error == pytest.approx(1)
    assert turned.correlations == pytest.approx((-1, -1, -1))


def test_the_truth_is_the_last_rung() -> None:
    ends = [_point("truth", seed, w, 1.0, w[0]) for w in INSIDE for seed in (0, 1)]
    begins = [replace(end, metrics=(0.0, 0.0), rung=0) for end in ends]
    ends = [replace(end, rung=1) for end in ends]
    assert last_rungs([*ends, *begins]) == last_rungs([*begins, *ends]) == ends
    previews = [_point("good", 0, w, 1.0, w[0]) for w in INSIDE]
    assert qualities([*begins, *ends], previews) == qualities(ends, previews)


def test_previews_without_a_truth_are_refused() -> None:
    with pytest.raises(ValueError, match="no truth at any interior weights that 'lost'"):
        qualities([], [_point("lost", 0, (0.5, 0.5), 1.0, 1.0)])


def test_families_are_named_as_in_the_flag() -> None:
    settings = PosteriorSettings(examples=7, components=5)
    one = parse_family("kronecker", settings)
    assert (one.family, one.components, one.examples) == ("kronecker", 1, 7)
    several = parse_family("diagonal:3:layer", settings)
    assert (several.components, several.responsibilities) == (3, "layer")
    for text in ("diagonal:3:layer+heads", "diagonal:3:layer+heads0.01"):
        assert parse_family(text, settings) == several
    for text in ("diagonal:3", "diagonal:x:layer", "diagonal:3:layer:1"):
        with pytest.raises(ValueError, match="FAMILY:RUNS:RESPONSIBILITIES"):
            parse_family(text, settings)
    with pytest.raises(ValueError, match="family must be one of"):
        parse_family("cubic", settings)


def test_a_toy_study_is_compared_and_gone_on_with(tmp_path: Path) -> None:
    families = ["isotropic", "diagonal:2:fixed"]

    def run() -> str:
        return compare(
            toy_definition(), tmp_path / "work", tmp_path / "results", families, 2, 2, 2
        )

    table = run().splitlines()
    assert [line.split("  ")[0].strip() for line in table] == ["", FINETUNE, *families]

    def rows(name: str) -> list[dict[str, str]]:
        with (tmp_path / "results" / name).open(newline="") as file:
            return list(csv.DictReader(file))

    truths, previews, costs = (rows(f"{name}.csv") for name in ("truth", "previews", "cost"))
    assert len(truths) == 3 * 2 * 3  # with the rungs under way
    assert [(t["rung"], t["steps"]) for t in truths[:3]] == [("0", "3"), ("1", "5"), ("2", "7")]
    assert len(previews) == 3 * 2 * 2
    assert [c["task_run_steps"] for c in costs] == ["14", "14", "28", "28"]
    assert [c["damping"] == "" for c in costs] == [True, True, False, False]
    alone = next(t for t in truths if (t["weight_red"], t["seed"], t["rung"]) == ("1", "0", "2"))
    merged = next(
        p
        for p in previews
        if p["family"] == "isotropic" and p["posterior_seed"] == "0" and p["weight_red"] == "1"
    )
    assert merged["metric_red"] == alone["metric_red"]  # of a task alone the merge is its run
    assert merged["loss_red"] == alone["loss_red"]
    noted = json.loads((tmp_path / "results" / "run.json").read_text())
    assert noted["truth_seeds"] == noted["posterior_seeds"] == [0, 1]
    assert noted["machine"]["cores"]

    models = sorted((tmp_path / "work" / "finetunes").glob("*/model.safetensors"))
    stamps = [path.stat().st_mtime_ns for path in models]
    assert run().splitlines()[1] == table[1]
    assert [path.stat().st_mtime_ns for path in models] == stamps
    assert rows("truth.csv") == truths


def test_another_family_is_compared_with_the_truths_that_are_there(tmp_path: Path) -> None:
    def run(results: str, families: list[str], extend: bool) -> list[str]:
        folder = tmp_path / results
        return compare(
            toy_definition(), tmp_path / "work", folder, families, 3, 2, 1, extend=extend
        ).splitlines()

    whole = run("whole", ["isotropic", "rows_columns"], False)
    assert [line.split()[0] for line in whole[1:]] == ["another", "isotropic", "rows_columns"]
    run("some", ["isotropic"], False)
    extended = run("some", ["isotropic", "rows_columns"], True)
    assert [line.split()[:8] for line in extended] == [line.split()[:8] for line in whole]


def test_tables_are_extended_by_what_they_lack_and_by_no_others(tmp_path: Path) -> None:
    ladder = Ladder((1,), ("isotropic",), multiples=(1,), rates=(1.0,))

    def run(workdir: str, divisions: int, seeds: int, extend: bool = True, **changes: int) -> str:
        definition = toy_definition()
        definition = replace(definition, finetuning=replace(definition.finetuning, **changes))
        return compare(
            definition,
            tmp_path / workdir,
            tmp_path / "results",
            ["isotropic"],
            divisions,
            seeds,
            1,
            ladder=ladder,
            extend=extend,
        )

    run("first", 1, 1, extend=False)  # the corners and uniform weights
    # What is there must be taken as it is: other numbers in it show that it was.
    path = tmp_path / "results" / "previews.csv"
    old, names = read_points(path)
    write_points(path, [replace(p, score=7.0) for p in old], names)
    run("second", 3, 2)
    previews, _ = read_points(path)
    truths, _ = read_points(tmp_path / "results" / "truth.csv")
    ends = last_rungs(truths)
    assert len(ends) == len({(p.weights, p.seed) for p in ends}) == 5 * 2
    marked = [p for p in previews if p.score == 7.0]
    assert len(marked) == len(old)
    assert len(previews) == len({(p.kind, p.seed, p.weights) for p in previews})
    assert {
        kind: sum(p.kind == kind for p in previews) for kind in {p.kind for p in previews}
    } == dict.fromkeys({p.kind for p in old}, 5)
    about = json.loads((tmp_path / "results" / "run.json").read_text())
    assert len(about["commands"]) == 2
    assert about["truth_seeds"] == [0, 1]
    with pytest.raises(ValueError, match="made with other finetuning than"):
        run("third", 3, 2, steps=9)
    assert read_points(path)[0] == previews


def test_weights_may_be_drawn_in_place_of_a_grid(tmp_path: Path) -> None:
    work, results = tmp_path / "work", tmp_path / "results"
    compare(toy_definition(), work, results, ["isotropic"], 5, 1, 1, drawn=(2, 0))
    sizes = [len(task.data("train")) for task in toy_definition().tasks]
    wanted = scattered(sizes, inside=2, faces=0)
    found = {p.weights for p in read_points(results / "truth.csv")[0]}
    np.testing.assert_allclose(sorted(found), sorted(wanted), atol=1e-6)


def _step(start: str, steps: int, batch_size: int, metric: float) -> Point:
    family = "diagonal" if start == "merged" else "none"
    return replace(
        _point(family, 0, INSIDE[0], 1.0, metric), start=start, steps=steps, batch_size=batch_size
    )


def test_steps_from_both_starts_are_kinds_of_their_own() -> None:
    truths = [_point("truth", 0, INSIDE[0], 1.0, 0.5)]
    merge = _step("merged", 0, 0, 0.1)
    points = [merge, _step("merged", 3, 8, 0.2), _step("merged", 3, 32, 0.3)]
    points.append(_step("pretrained", 3, 8, 0.4))
    rows = qualities(truths, points)
    assert [(row.kind, row.error) for row in rows] == [
        ("diagonal", pytest.approx(0.4)),
        ("diagonal + 3 x 8", pytest.approx(0.3)),
        ("diagonal + 3 x 32", pytest.approx(0.2)),
        ("pretrained + 3 x 8", pytest.approx(0.1)),
    ]
    assert [p.examples for p in points] == [0, 24, 96, 24]
    table = format_qualities(rows, ["red", "blue"], "share", {"diagonal + 3 x 8": "40%"})
    heading, *lines = table.splitlines()
    assert heading.endswith("share")
    assert [line.endswith("40%") for line in lines] == [False, True, False, False]


def test_a_ladder_is_climbed_from_the_merge_and_from_the_body(tmp_path: Path) -> None:
    ladder = Ladder((1, 3), ("isotropic",), multiples=(1, 2), rates=(0.5, 1.0))
    text = compare(
        toy_definition(),
        tmp_path / "work",
        tmp_path / "results",
        ["isotropic"],
        3,
        1,
        1,
        interior=True,
        ladder=ladder,
        truth_rungs=(2, 7),
    )
    with (tmp_path / "results" / "truth.csv").open(newline="") as file:
        assert [(t["rung"], t["steps"]) for t in csv.DictReader(file)] == [
            ("0", "2"),
            ("1", "7"),
        ] * 3
    batch = toy_definition().finetuning.batch_size
    kinds = [f"{s} x {b}" for b in (batch, 2 * batch) for s in (1, 3)]
    lines = text.partition("\n\n")[2].splitlines()[1:]
    assert [line.partition("  ")[0] for line in lines] == [
        f"{start} + {kind}" for start in ("isotropic", "pretrained") for kind in kinds
    ]
    with (tmp_path / "results" / "previews.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(r["start"], r["family"], r["steps"]) for r in rows} == {
        ("merged", "isotropic", "0"),
        ("merged", "isotropic", "1"),
        ("merged", "isotropic", "3"),
        ("pretrained", "none", "1"),
        ("pretrained", "none", "3"),
    }
    assert len(rows) == 3 * (1 + 4 + 4)  # two interior weightings of thirds, and uniform weights

    def loss(start: str, steps: str, batch_size: int) -> float:
        return sum(
            float(r[f"weight_{task}"]) * float(r[f"loss_{task}"])
            for r in rows
            for task in ("red", "blue")
            if (r["start"], r["steps"], r["batch_size"]) == (start, steps, str(batch_size))
        )

    # Refinements never raise the weighted loss, so that later rungs are at least as good.
    for size in (batch, 2 * batch):
        losses = [loss("merged", "0", 0), loss("merged", "1", size), loss("merged", "3", size)]
        assert losses == sorted(losses, reverse=True)
    noted = json.loads((tmp_path / "results" / "run.json").read_text())
    rates = noted["refinement_rates"]
    assert list(rates) == [f"isotropic x {batch}", f"isotropic x {2 * batch}"]
    assert {rate for found in rates.values() for rate in found} <= {0.5, 1.0}


def test_the_ladders_runs_have_the_rungs_steps_and_batch_sizes() -> None:
    finetuning = FinetuneSettings(steps=60, batch_size=8, num_rungs=3)
    ladder = Ladder((3, 6, 24), ("diagonal",), multiples=(1, 4))  # 24 x 32 cost more than 60 x 8
    assert ladder.refinements(finetuning) == {8: (3, 6, 24), 32: (3, 6)}
    runs = ladder.finetunes(finetuning)
    assert [(r.steps, r.batch_size) for r in runs] == [(3, 8), (6, 8), (24, 8), (3, 32), (6, 32)]
    assert all(list(r.rungs()) == [r.steps] and r.decay == "linear" for r in runs)
    assert Ladder().refinements(finetuning) == {}
    assert Ladder().finetunes(finetuning) == []
