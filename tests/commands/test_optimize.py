"""`optimize`, and a study's own script, which has the same flags."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from helpers import toy_definition

from commands.command_line import (
    STORAGE,
    dashboard_figures,
    fails,
    load_study,
    prints,
    write_toy,
)
from optuna_merge.cli import script


def test_optimize_prints_and_writes_the_report(folder: Path) -> None:
    text = prints("optimize", "toy.py", "--n-trials", "7", "--seed", "0")
    assert "Best task weights: red" in text
    assert "The same as JSON: workdir/report-optuna_merge.json" in text
    found = json.loads(Path("workdir/report-optuna_merge.json").read_text())
    assert found["counts"]["previews"] == 6
    assert "Best task weights" in Path("workdir/report-optuna_merge.html").read_text()
    assert "preview-truth" in dashboard_figures(load_study())


def test_json_is_all_that_is_printed(folder: Path) -> None:
    fitted = json.loads(prints("fit", "toy.py", "--json"))
    found = json.loads(prints("optimize", "toy.py", "--n-trials", "4", "--seed", "0", "--json"))
    assert found["best"]["weights"].keys() == {"red", "blue"}
    assert found["fingerprint"] == fitted["fingerprint"]
    assert json.loads(prints("report", "toy.py", "--json")) == found


def test_a_script_prints_nothing_but_json_if_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["optimize.py", "--json", "--n-trials", "4", "--seed", "0"])
    with pytest.raises(SystemExit) as ended:
        script(toy_definition, name="toys", n_trials=50)
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(Path("workdir/toys/report-toys.json").read_text())
    assert found["study"] == "toys"
    assert Path("toys.db").is_file()


def test_the_help_of_a_script_has_its_own_defaults(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build() -> None:
        """Toys in two colours."""
        raise AssertionError

    monkeypatch.setattr(sys, "argv", ["optimize.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        script(build, name="toys", n_trials=51)  # type: ignore[arg-type]
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for part in ("Toys in two colours.", "sqlite:///toys.db", "workdir/toys", "51"):
        assert part in text


def test_a_pareto_study_with_constraints_and_a_budget(folder: Path) -> None:
    write_toy("score='pareto', constraints=0.5")
    flags = ("--fraction", "1", "--max-promotions", "2", "--seed", "0", "--n-trials", "19")
    text = prints("optimize", "toy.py", *flags)
    assert "Pareto front of the truths" in text
    assert "2 promoted, 4 baselines" in text
    assert "front" in dashboard_figures(load_study())
    again = prints("report", "toy.py")
    assert again[again.index("Study ") :] == text[text.index("Study ") :]
    assert "red" in prints("diagnose")


def test_a_study_made_by_optunas_command_line_is_used(folder: Path) -> None:
    made = subprocess.run(
        [
            str(Path(sys.executable).with_name("optuna")), "create-study", "--study-name", "mine",
            "--storage", STORAGE, "--direction", "maximize",
        ],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    prints("optimize", "toy.py", "--study-name", "mine", "--n-trials", "4")
    assert len(load_study("mine").trials) >= 4


def test_another_direction_is_refused(folder: Path) -> None:
    optuna.create_study(study_name="mine", storage=STORAGE, direction="minimize")
    told = fails("optimize", "toy.py", "--study-name", "mine")
    assert "has direction minimize" in told
    assert "--direction maximize" in told
    assert not Path("workdir/finetunes").exists(), "nothing was trained before"


def test_another_definition_is_refused_and_named(folder: Path) -> None:
    prints("optimize", "toy.py", "--n-trials", "1")
    write_toy("finetuning=toy_settings(steps=5)")
    assert "finetuning.steps (7 → 5)" in fails("optimize", "toy.py", "--n-trials", "1")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--storage", "nosuch://somewhere/db"), "nosuch"),
        (("--storage", "sqlite:////nosuch/folder/x.db"), "/nosuch/folder"),
        (("--fraction", "1.5"), "fraction"),
        (("--n-trials", "-3"), "n_trials"),
        (("--max-promotions", "-1"), "max_promotions is -1, expected 0 or more"),
        (("--keep-best", "0"), "keep_best"),
        (("--role", "boss"), "role is 'boss'"),
    ],
)
def test_bad_flags_end_with_a_message(folder: Path, flags: tuple[str, ...], told: str) -> None:
    text = fails("optimize", "toy.py", *flags)
    assert "error: " in text
    assert told in text
    assert Path("workdir/finetunes").exists() == ("--n-trials" in flags), "else nothing is trained"


def test_a_workdir_that_is_a_file_is_refused(folder: Path) -> None:
    Path("blocked").write_text("")
    told = fails("optimize", "toy.py", "--workdir", "blocked")
    assert "blocked" in told
    assert "--workdir" in told
    assert not Path("optuna_merge.db").exists()


def test_the_second_seed_is_left_out_by_a_flag_or_the_definition(folder: Path) -> None:
    def repeats() -> list[int]:
        trials = load_study().get_trials()
        return [t.user_attrs.get("repeat", 0) for t in trials if "baseline" in t.user_attrs]

    prints("optimize", "toy.py", "--n-trials", "1", "--no-second-seed")
    prints("report", "toy.py")
    assert repeats() == [0, 0, 0]
    toy = Path("toy.py")
    toy.write_text(
        toy.read_text()
        + "\n\ndef definition(made=definition):\n"
        + "    from dataclasses import replace\n"
        + "    from optuna_merge.definition import SearchSettings\n"
        + "    return replace(made(), search=SearchSettings(second_seed=False))\n"
    )
    prints("optimize", "toy.py", "--n-trials", "1")
    assert repeats() == [0, 0, 0]
    prints("optimize", "toy.py", "--n-trials", "1", "--second-seed")
    assert repeats() == [0, 0, 0, 1]


def test_a_budget_and_until_stand_in_the_definition_or_are_flags(folder: Path) -> None:
    text = prints("optimize", "toy.py", "--n-trials", "1", "--budget", "9")
    assert re.search(
        r"Spent: \d+\.\d of 9 finetunes' worth of time, \d+\.\d left, \S+ \w+ in all \(task runs",
        text,
    )
    found = json.loads(Path("workdir/report-optuna_merge.json").read_text())
    parts = ("task_runs", "posteriors", "previews", "finetunes")
    assert found["spent"]["total"] == pytest.approx(sum(found["spent"][part] for part in parts))
    assert " of 9 finetunes" in Path("workdir/report-optuna_merge.html").read_text()
    assert " of 9 " not in prints("report", "toy.py")
    assert "until is -1" in fails("optimize", "toy.py", "--n-trials", "1", "--until", "-1")
    assert "budget is -1" in fails("optimize", "toy.py", "--n-trials", "1", "--budget", "-1")
    write_toy("score='pareto'")
    told = fails("optimize", "toy.py", "--n-trials", "1", "--until", "1", "--study-name", "front")
    assert "no single score" in told
