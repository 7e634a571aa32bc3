"""The table of preview quality: its arithmetic on made-up points, and a whole toy run."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
from helpers import toy_definition

from optuna_merge.definition import PosteriorSettings
from studies.families import compare, parse_family
from studies.preview_quality import FINETUNE, Point, Weights, grid, qualities

INSIDE = [(0.5, 0.5), (0.25, 0.75), (0.75, 0.25), (0.4, 0.6), (0.6, 0.4)]


def _point(family: str, seed: int, weights: Weights, loss: float, metric: float) -> Point:
    return Point(family, seed, weights, 10, 1.0, metric, (loss, 2 * loss), (metric, metric))


def test_the_grid_has_every_weighting_once() -> None:
    weightings = grid(3, 5)
    assert len(weightings) == len(set(weightings)) == 21
    assert weightings[0] == (1.0, 0.0, 0.0)
    assert all(sum(weights) == 1.0 for weights in weightings)
    assert sum(min(weights) > 0 for weights in weightings) == 6
    assert grid(1, 4) == [(1.0,)]
    assert grid(2, 2) == [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]


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

    assert (noise.family, noise.seeds) == (FINETUNE, 2)
    assert noise.error == pytest.approx(0.2)
    assert noise.correlations == pytest.approx((1, 1, 1))

    mean_shift = sum(w[0] + 2 * w[1] for w in INSIDE) / len(INSIDE)
    assert (good.family, good.seeds) == ("good", 2)
    assert good.error == pytest.approx(0, abs=1e-12)
    assert good.gap == pytest.approx(0.3 * mean_shift)
    assert good.gap_spread == pytest.approx(0.2 / math.sqrt(2) * mean_shift)
    assert turned.bias == pytest.approx(-1)
    assert turned.error == pytest.approx(1)
    assert turned.correlations == pytest.approx((-1, -1, -1))


def test_previews_without_a_truth_are_refused() -> None:
    with pytest.raises(ValueError, match="no truth at any interior weights that 'lost'"):
        qualities([], [_point("lost", 0, (0.5, 0.5), 1.0, 1.0)])


def test_families_are_named_as_in_the_flag() -> None:
    settings = PosteriorSettings(examples=7, components=5)
    one = parse_family("kronecker", settings)
    assert (one.family, one.components, one.examples) == ("kronecker", 1, 7)
    several = parse_family("diagonal:3:layer", settings)
    assert (several.components, several.responsibilities) == (3, "layer")
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
    assert len(truths) == 3 * 2
    assert len(previews) == 3 * 2 * 2
    assert [c["task_run_steps"] for c in costs] == ["14", "14", "28", "28"]
    assert [c["damping"] == "" for c in costs] == [True, True, False, False]
    alone = next(t for t in truths if t["weight_red"] == "1" and t["seed"] == "0")
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
