"""The mixture study's finetunes, on toy tasks: made once, in turns, by the doubling rule."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path

import pytest
from helpers import toy_columns, toy_definition, toy_model, toy_task

from optuna_merge.fitting import FittedStudy
from studies.families import fit_family
from studies.mixture import truths
from studies.mixture.truths import CHOOSING, Finetunes, NotYet, Sizes, Turn, excess_of, of_body
from studies.preview_quality import Point, Weights, last_rungs


@pytest.fixture(scope="module")
def finetunes(tmp_path_factory: pytest.TempPathFactory) -> Finetunes:
    tasks = [
        toy_task("red", 1, test=toy_columns(30, 2, 1)),
        toy_task("blue", 2, classes=3, test=toy_columns(30, 3, 2)),
    ]
    definition = toy_definition(tasks, model=toy_model(tasks))
    fitted, _ = fit_family(definition, "isotropic", 0, tmp_path_factory.mktemp("workdir"))
    return Finetunes(fitted, Turn(1e9, time.monotonic()))


def test_a_finetune_has_its_rungs_and_its_seed(finetunes: Finetunes) -> None:
    weights = (0.25, 0.75)
    first, again = finetunes.at(weights), finetunes.at(weights, CHOOSING)
    assert [p.rung for p in first] == [0, 1, 2]
    assert [p.steps for p in first] == [3, 5, 7]
    assert {p.seed for p in first} == {0} and {p.seed for p in again} == {CHOOSING}
    assert first[-1].losses != again[-1].losses
    assert [p.losses for p in finetunes.at(weights)] == [p.losses for p in first]


def test_what_is_there_is_found_when_the_time_is_up(finetunes: Finetunes) -> None:
    found = finetunes.at((0.4, 0.6))
    late = Finetunes(finetunes.fitted, Turn(0.0, time.monotonic() - 1))
    assert late.at((0.4, 0.6)) == found
    with pytest.raises(NotYet):
        late.at((0.41, 0.59))


def test_the_doubling_rule_goes_on_from_the_worst_task(finetunes: Finetunes) -> None:
    made = finetunes.doubling(lambda metrics: 1, 2)
    assert [points[0].weights for points in made] == [
        pytest.approx((1 / 3, 2 / 3)),
        pytest.approx((1 / 5, 4 / 5)),
    ]
    assert {p.seed for points in made for p in points} == {CHOOSING}


def test_the_worst_is_furthest_behind_its_own_run(finetunes: Finetunes) -> None:
    alone = [finetunes.fitted.alone[name] for name in ("red", "blue")]
    worst = excess_of(finetunes.fitted)
    assert worst([alone[0] + 0.1, alone[1] + 0.2]) == 1
    assert worst([alone[0] + 0.3, alone[1] + 0.2]) == 0


def test_test_data_are_apart(finetunes: Finetunes) -> None:
    (end,) = last_rungs(finetunes.at((0.25, 0.75)))
    tested = finetunes.on_test(end)
    assert (tested.weights, tested.seed, tested.steps) == (end.weights, end.seed, end.steps)
    assert tested.losses != end.losses
    assert finetunes.on_test(end).losses == tested.losses


def test_previews_are_made_once(
    tmp_path: Path, finetunes: Finetunes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(truths, "FAMILIES", ("isotropic", "diagonal+anchor"))
    made: list[tuple[str, Weights]] = []
    preview = truths.preview

    def counted(fitted: FittedStudy, family: str, weights: Weights) -> Point:
        made.append((family, weights))
        if len(made) == 3:
            raise KeyboardInterrupt
        return preview(fitted, family, weights)

    monkeypatch.setattr(truths, "preview", counted)
    study, weightings = finetunes.fitted.definition, [(0.25, 0.75), (0.6, 0.4), (0.25, 0.75)]
    turn = Turn(1e9, time.monotonic())
    with pytest.raises(KeyboardInterrupt):
        truths.previews(study, weightings, tmp_path, turn)
    points, costs = truths.previews(study, weightings, tmp_path, turn)
    assert [family for family, _ in made] == ["isotropic"] * 2 + ["diagonal+anchor"] * 3
    assert [(p.family, p.weights) for p in points] == [
        (family, weights)
        for family in ("isotropic", "diagonal+anchor")
        for weights in ((0.25, 0.75), (0.6, 0.4))
    ]
    assert {p.seed for p in points} == {CHOOSING}
    assert [row[0] for row in costs[1:]] == ["isotropic", "diagonal+anchor"]
    late = Turn(0.0, time.monotonic() - 1)
    again = truths.previews(study, weightings, tmp_path, late)[0]
    assert [p.weights for p in again] == [p.weights for p in points]
    for found, expected in zip(again, points):
        assert found.losses == pytest.approx(expected.losses, abs=1e-6)
    with pytest.raises(NotYet):
        truths.previews(study, [(0.1, 0.9)], tmp_path, late)


def test_a_whole_toy_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [
        toy_task(name, seed, test=toy_columns(30, 2, seed))
        for seed, name in enumerate(("python", "german", "italian"))
    ]
    study = toy_definition(tasks, model=toy_model(tasks))
    monkeypatch.setattr(truths, "definition", lambda *, body: {"medium": study}[body])
    monkeypatch.setattr(truths, "loss_on_english", lambda body: 4.5)
    monkeypatch.setattr(truths, "FAMILIES", ("isotropic", "diagonal+anchor"))
    results, sizes = tmp_path / "results", Sizes(inside=2, faces=1, again=1, doublings=1)
    ready = ("medium", tmp_path / "work", results, sizes)
    with pytest.raises(NotYet):
        truths.make(*ready, Turn(0.0, time.monotonic() - 1))
    assert not (results / "previews.csv").exists()
    truths.make(*ready, Turn(1e9, time.monotonic()))
    rows = {}
    for name in ("truth", "test", "previews"):
        with (results / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            rows[name] = list(csv.DictReader(file))
    # Uniform weights and three tasks alone twice, in proportion to the data, three drawn ones, one
    # of them twice, and those that either doubling rule comes to, twice.
    doubled = len(rows["test"]) - 13
    assert doubled in (2, 4)
    assert len(rows["truth"]) == 3 * len(rows["test"])
    assert len(rows["previews"]) == 2 * (8 + doubled // 2)
    about = json.loads((results / "run.json").read_text(encoding="utf-8"))
    assert about["body"] == {"name": "medium", "english_loss": 4.5}
    assert of_body("small", "/") == "" and of_body("medium", "/") == "/medium"
