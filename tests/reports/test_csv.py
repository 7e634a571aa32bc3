"""The report's tables."""

from __future__ import annotations

import csv
from pathlib import Path

import optuna

import optuna_merge as om
from optuna_merge.reports import write_csv
from optuna_merge.trials import read_study
from reports.conftest import NAMES

Trio = tuple[optuna.Study, om.FittedStudy]


def test_tables_as_csv(trio: Trio, tmp_path: Path) -> None:
    study, fitted = trio
    report = om.make_report(study, fitted)
    files = write_csv(tmp_path / "csv", study, report)
    assert [f.name for f in files] == [
        "weightings.csv",
        "metrics.csv",
        "cost.csv",
        "calibration.csv",
    ]
    tables = {f.stem: list(csv.DictReader(f.open(newline=""))) for f in files}
    outcomes = read_study(study).outcomes
    for row, outcome in zip(tables["weightings"], outcomes, strict=True):
        assert int(row["trial"]) == outcome.trial
        assert float(row["weight_green"]) == outcome.weights["green"]
        assert row["truth"] == ("" if outcome.truth is None else str(outcome.truth))
    best = [row for row in tables["metrics"] if row["finetune"] == "best"]
    assert [row["quantity"] for row in best] == [*NAMES, "score (mean)"]
    assert float(best[-1]["truth"]) == report["best"]["score"]["truth"]
    assert [row["quantity"] for row in tables["calibration"]] == ["score", *NAMES]
    assert int(tables["cost"][-1]["steps"]) == (
        report["cost"]["task_run_steps"] + report["cost"]["finetune_steps"]
    )


def test_of_several_objectives_there_is_no_score(tmp_path: Path) -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    study.set_user_attr("tasks", ["red", "blue"])
    files = write_csv(tmp_path, study)
    heads = {f.stem: f.read_text().splitlines() for f in files}
    assert heads["cost"] == ["steps,truth,hypervolume,trial,kind"]
    assert [line.split(",")[0] for line in heads["calibration"]] == ["quantity", "red", "blue"]
    assert [line.split(",")[-1] for line in heads["calibration"][1:]] == ["maximize", "minimize"]
