from __future__ import annotations

import json
import sys
from pathlib import Path

import optuna
import pytest
from replay_helpers import SharesBench, searched

from commands.command_line import DEFINITION, STORAGE, fails, load_study, prints

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SEARCH = ("replay", "toy.py", "--general", "blue", "--n-trials", "6", "--seed", "0")


def test_replay_searches_and_answers(folder: Path) -> None:
    text = prints(*SEARCH, "--max-promotions", "1")
    assert "How much blue beside red? The metric of blue must keep 0.95 of what it is" in text
    (page,) = Path("workdir").glob("report-*.html")
    assert "How much replay?" in page.read_text()
    study = load_study("replay")
    finished = len(study.trials)
    assert study.metric_names == ["score (target:red)"]
    assert set(study.best_trials[0].constraints) == {"blue_of_alone_0.95"}
    found = json.loads(prints(*SEARCH, "--max-promotions", "1", "--json"))
    assert len(load_study("replay").trials) > finished, "the same command goes on"
    assert found["own"]["task"] == "red" and found["general"]["task"] == "blue"
    assert found["bound"] == 0.95 * found["alone"]
    assert len(found["shares"]) == len(found["own"]["mean"]) == len(found["general"]["low"])
    loose = json.loads(prints("replay", "--general", "blue", "--keep", "0.5", "--json"))
    assert loose["bound"] == 0.5 * found["alone"], "of a study that is there, at another share"
    assert "constraints" in fails(*SEARCH, "--keep", "0.5")


def test_a_study_of_any_trainer_is_read(folder: Path) -> None:
    searched(SharesBench("mean", keep=None), 8, 1, storage=STORAGE)
    found = prints("replay", "--study-name", "shares", "--general", "general")
    assert "How much general beside own?" in found
    flags = found.rpartition("optuna-merge ")[2].replace("FORM", "json").split()
    assert json.loads(prints(*flags))["task_weights"].keys() == {"own", "general"}


def test_replay_of_a_command_that_trains(folder: Path) -> None:
    """The stand-in for a script samples; of ten steps each share has a point of its own."""
    script = f"{sys.executable} {EXAMPLES / 'tiny' / 'command.py'}"
    Path("study.yaml").write_text(f"""
trainer:
  kind: command
  train: {script} train {{folder}} {{checkpoint}} {{weights}} {{seed}} {{steps}}
  evaluate: {script} evaluate {{checkpoint}}
  steps: 10
  unit: {{kind: examples}}
  checkpoint: model.safetensors
tasks: [math, chat]
""")
    search = ("replay", "study.yaml", "--general", "chat", "--keep", "0.8", "--seed", "0")
    found = json.loads(prints(*search, "--n-trials", "7", "--max-promotions", "1", "--json"))
    assert found["own"]["task"] == "math"
    assert found["bound"] == pytest.approx(0.8 * found["alone"])
    assert len(found["finetuned"]) >= 3


def test_what_can_not_be_asked_is_told_before_anything_is_trained(folder: Path) -> None:
    Path("three.py").write_text(
        DEFINITION.replace(
            "toy_definition()", "toy_definition([toy_task(n) for n in 'abc'])"
        ).replace("toy_settings", "toy_task")
    )
    for wrong, told in (
        ((*SEARCH, "--keep", "0"), "keep is 0; expected"),
        ((*SEARCH, "--keep", "1.2"), "keep is 1.2; expected"),
        (("replay", "toy.py", "--general", "chat"), "no task 'chat' among ['red', 'blue']"),
        (("replay", "three.py", "--general", "a"), "here are 3: a, b, c"),
        (("replay", "--general", "blue"), "no database optuna_merge.db"),
    ):
        assert told in fails(*wrong), wrong
    assert not Path("workdir").exists()
    assert optuna.get_all_study_names(STORAGE) == []
