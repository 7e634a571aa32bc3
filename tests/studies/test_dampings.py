"""Previews by damping, on toy tasks; which damping each rule takes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from helpers import toy_definition, toy_task

from optuna_merge.fitting._damping import MULTIPLES
from optuna_merge.previews import PreviewSettings
from studies import dampings
from studies.anchors import SEED
from studies.dampings import RULES, Damped, all_damped, compare, taken
from studies.families import compare as make_tables, fit_family


def test_a_rule_takes_the_smallest_loss_and_of_equal_ones_the_largest_damping() -> None:
    losses = {0.1: (1.0, 3.0, 0.5), 1.0: (1.0, 2.0, 0.5), 10.0: (4.0, np.inf, 0.4)}
    found = {
        multiple: Damped(dict(zip(RULES, values)), np.zeros((1, 2)))
        for multiple, values in losses.items()
    }
    assert list(taken(found).values()) == [1.0, 1.0, 10.0]


def test_a_whole_toy_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [toy_task(name, seed, head="both") for seed, name in enumerate(("red", "blue"))]
    study = toy_definition(tasks, preview=PreviewSettings(heads="resolved"))
    results, work = tmp_path / "results", tmp_path / "work"
    make_tables(study, work, results, ["isotropic"], 3, 1, 1)
    text = compare(study, results, work, 1, ["red"])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert lines[0] == ["damping", "error", "red", "blue", "mean", "worst", "target:red"]
    names = [f"{multiple:g}" for multiple in MULTIPLES]
    assert [line[0] for line in lines[2:]] == [*names, *(f"chosen on {rule}" for rule in RULES)]
    assert all(line[1:] in [other[1:] for other in lines[2:-3]] for line in lines[-3:])
    with (results / "dampings.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(MULTIPLES)
    for rule in RULES:
        assert len({row[rule] for row in rows}) > 4, "the damping changes what the rule looks at"

    # The rule of the package is the package's, and previews are those of the study.
    fitted, _ = fit_family(study, "diagonal+heads+anchor", SEED, work)
    weights = np.array([(1 / 3, 2 / 3), (2 / 3, 1 / 3)])
    found = all_damped(study, weights, SEED, work)
    assert fitted.damping is not None
    sweep = list(fitted.damping.sweep.values())
    assert [damped.losses["merges"] for damped in found.values()] == pytest.approx(sweep)
    for row, seen in zip(weights.tolist(), found[taken(found)["merges"]].metrics):
        made = fitted.previewer(dict(zip(fitted.names, row))).evaluations
        assert seen == pytest.approx([made[name].metric.value for name in fitted.names])

    # Heads merged, every damping's preview at uniform weights is the finetune there.
    even, merged = (
        np.array([(0.5, 0.5)]),
        toy_definition(tasks, preview=PreviewSettings(heads="merged")),
    )
    metrics = [damped.metrics for damped in all_damped(merged, even, SEED, work).values()]
    fitted, _ = fit_family(merged, "isotropic", SEED, work)
    run = fitted.store.find(dict.fromkeys(fitted.names, 0.5), fitted.definition.finetuning)
    assert run is not None
    expected = [found.metric.value for found in run.evaluations.values()]
    for found in metrics:
        assert found[0] == pytest.approx(expected)

    # What is there is not made again.
    monkeypatch.setattr(dampings, "damped_at", None)
    assert compare(study, results, work, 1, ["red"]) == text
