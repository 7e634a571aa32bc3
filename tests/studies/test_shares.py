"""Task runs on mixtures: their weights are the wanted ones in all; merges go through them."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import toy_definition, toy_task

from optuna_merge.definition import StudyDefinition
from optuna_merge.finetuning import FinetuneSettings
from optuna_merge.fitting import fit
from optuna_merge.previews import PreviewSettings
from studies.anchors import SEED
from studies.families import compare as make_tables, fit_family
from studies.mixed_runs import Recipe, Runs, previews, run_weights
from studies.shares import compare, kinds_of, prices

WEIGHTS = [(0.3, 0.7), (0.5, 0.5), (0.8, 0.2)]


def definition(heads: str = "resolved") -> StudyDefinition:
    """Two tasks with one head."""
    tasks = [toy_task(name, seed, head="both") for seed, name in enumerate(("red", "blue"))]
    settings = PreviewSettings(heads=heads, anchor="none")  # type: ignore[arg-type]
    return toy_definition(tasks, preview=settings)


def test_the_runs_weights_are_the_wanted_ones_in_all() -> None:
    mixing = Recipe(share=0.3).mixing(4)
    wanted = [0.4, 0.3, 0.2, 0.1]
    assert run_weights(wanted, mixing) @ mixing == pytest.approx(wanted)
    assert mixing.sum(1) == pytest.approx(1)
    assert run_weights(wanted, np.eye(4)) == pytest.approx(wanted)


def test_near_a_corner_the_runs_weights_are_clipped_or_go_beyond() -> None:
    mixing = Recipe(share=0.3).mixing(4)
    corner = [0.96, 0.02, 0.01, 0.01]
    beyond = run_weights(corner, mixing, beyond=True)
    assert min(beyond) < 0
    assert beyond @ mixing == pytest.approx(corner)
    assert run_weights(corner, mixing) == pytest.approx([1, 0, 0, 0])


@pytest.mark.parametrize(("family", "heads"), [("isotropic", "merged"), ("diagonal", "resolved")])
def test_runs_alone_are_previewed_as_a_study_does(tmp_path: Path, family: str, heads: str) -> None:
    study = definition(heads)
    seeded = replace(study.finetuning, seed=5)
    posterior = replace(study.posterior, family=family, seed=5)
    study = replace(study, finetuning=seeded, posterior=posterior)
    fitted = fit(study, tmp_path, progress=False)
    runs = Runs.make(fitted, Recipe())
    seen = previews(runs, family, study.preview, None, np.array(WEIGHTS), beyond=False)
    for weights, row in zip(WEIGHTS, seen):
        found = fitted.previewer(dict(zip(fitted.names, weights))).evaluations
        assert row == pytest.approx([found[name].metric.value for name in fitted.names])


@pytest.mark.parametrize(("family", "heads"), [("isotropic", "merged"), ("diagonal", "resolved")])
def test_at_the_weights_of_a_run_the_preview_is_this_run(
    tmp_path: Path, family: str, heads: str
) -> None:
    study = definition(heads)
    fitted, _ = fit_family(study, "isotropic", 0, tmp_path)
    runs = Runs.make(fitted, Recipe(share=0.4))
    posteriors = runs.posteriors(family)
    previewer = runs.previewer(posteriors, settings=study.preview, states=runs.states)
    for row, state in zip(runs.mixing.tolist(), runs.states.values()):
        previewer.load(dict(zip(fitted.names, row)))
        merged = fitted.model.state()
        for name, tensor in state.items():
            assert merged[name].numpy() == pytest.approx(tensor.numpy(), abs=2e-4)


def test_recipes() -> None:
    finetuning = FinetuneSettings(steps=81, rung_steps=(9, 27, 81))
    recipe = Recipe.of("share 0.1 + steps 1/3 + constant rate")
    assert recipe == Recipe(0.1, 3, True)
    assert recipe.settings(finetuning) == replace(
        finetuning, steps=27, rung_steps=(27,), decay="constant"
    )
    assert prices(recipe, 4) == "1.3 / 1.3"
    assert prices(Recipe(), 4) == "4 / 1"
    assert len(kinds_of(recipe, "isotropic")) == 4 > len(kinds_of(recipe, "diagonal"))
    with pytest.raises(ValueError, match=r"a recipe is one of .*, got 'a third'"):
        Recipe.of("a third")


def test_a_whole_toy_comparison(tmp_path: Path) -> None:
    study, results = definition(), tmp_path / "results"
    make_tables(study, tmp_path / "work", results, ["isotropic"], 3, 1, 1)
    recipes = ["alone", "share 0.2 + steps 1/3"]
    text = compare(study, results, tmp_path / "work", recipes, ["diagonal"], 2, ["red"])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert lines[0] == [
        *("runs", "steps / examples", "previews", "error", "red", "blue"),
        *("mean", "worst", "target:red"),
    ]
    assert [line[0] for line in lines[2:]] == [r for r in recipes for _ in range(2)]
    assert all("±" in line[3] for line in lines[2:])
    with (results / "shares.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    # Two seeds, two recipes, anchored and not, two interior weightings beside uniform ones.
    assert len(rows) == 2 * 2 * 2 * 2
    assert {int(row["seed"]) for row in rows} == {SEED, SEED + 1}
