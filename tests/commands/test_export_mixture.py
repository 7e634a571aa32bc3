from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands.command_line import fails, load_study, prints
from optuna_merge.trials import DEFINITION


def test_mixture_of_the_best_finetune(folder: Path) -> None:
    prints("optimize", "toy.py", "--n-trials", "4", "--seed", "0")
    Path("toy.py").unlink()  # the study says all
    best = load_study().best_trial
    found = json.loads(prints("export", "--mixture", "json"))["task_weights"]
    assert found == {task: best.user_attrs[f"weight_{task}"] for task in ("red", "blue")}
    alone = json.loads(prints("export", "--mixture", "json", "--trial", "1"))["task_weights"]
    assert alone == {"red": 1, "blue": 0}
    assert "dataset: red,blue\n" in prints("export", "--mixture", "llamafactory", "--trial", "0")
    for wrong, told in (
        (("export", "--mixture", "axolotl"), "give the number of training examples of"),
        (("export", "--mixture", "json", "--out", "best"), "not both"),
        (("export", "--mixture", "json", "--json"), "--mixture json in place of --json"),
        (
            ("export", "--mixture", "torchtune"),
            "mixture 'torchtune' is not known; expected one of json",
        ),
        (("export", "--mixture", "json", "--trial", "77"), "no trial 77 with task weights"),
        (("export", "--mixture", "json", "--study-name", "other"), "no study 'other'"),
        (("export", "--mixture", "json", "--trial", "1", "--weights", "red=1"), "not both"),
    ):
        assert told in fails(*wrong), wrong


def test_mixture_of_given_weights_needs_no_study(folder: Path) -> None:
    text = prints(
        "export",
        "--mixture",
        "axolotl",
        "--weights",
        "red=1,blue=3",
        "--examples",
        "red=5,blue=30",
    )
    assert "  - path: red\n    weight: 1\n" in text
    assert "can't read 'red' in --examples; expected TASK=NUMBER" in fails(
        "export", "--mixture", "trl", "--weights", "red=1", "--examples", "red"
    )


@pytest.mark.parametrize("weights", ["red=0,blue=0", "red=-1,blue=2", "red=nan,blue=1"])
def test_weights_that_are_no_shares_are_refused(folder: Path, weights: str) -> None:
    told = fails("export", "--mixture", "trl", "--weights", weights)
    assert "--weights are red" in told and "expected numbers of 0 or more, not all 0" in told


def test_what_the_study_knows_of_its_data_is_used(folder: Path) -> None:
    prints("optimize", "toy.py", "--n-trials", "3", "--seed", "0")
    study = load_study()
    known = {"tasks": [{"name": t, "data": {"train": {"examples": n}}} for t, n in
                       (("red", 10), ("blue", 40))],
             "weights": {"mean_label_tokens": {"red": 2.0, "blue": 6.0}}}  # fmt: skip
    study.set_user_attr(DEFINITION, json.dumps(known))
    found = json.loads(prints("export", "--mixture", "json", "--trial", "0"))["shares_of_examples"]
    assert found == pytest.approx({"red": 0.75, "blue": 0.25})
    assert (
        "Rows that are used: red 10 of 10, blue 3 of 40."
        in prints("export", "--mixture", "trl", "--trial", "0") + "\n"
    )
