"""LLaMA-Factory and axolotl as commands: how their configuration is filled, and what is called."""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.numpy import load_file

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RUN = EXAMPLES / "configured" / "run.py"
SHARES = {"math": 0.25, "chat": 0.75}


@pytest.fixture(scope="module")
def filled() -> Any:
    return runpy.run_path(str(RUN))["filled"]


def test_llamafactory_is_given_probabilities(filled: Any) -> None:
    config = filled("llamafactory", "out", SHARES, 3, 300)
    assert config["dataset"] == "math,chat"
    assert [float(p) for p in config["interleave_probs"].split(",")] == [0.25, 0.75]
    assert config["mix_strategy"] == "interleave_over"
    assert (config["output_dir"], config["seed"], config["max_steps"]) == ("out", 3, 300)
    assert config["stage"] == "sft", "the rest is as the user has written it"
    alone = filled("llamafactory", "out", {"math": 0.0, "chat": 1.0}, 3, 300)
    assert alone["dataset"] == "chat", "a probability of zero could end in no end"
    assert float(alone["interleave_probs"]) == 1


def test_axolotl_is_given_the_part_of_each_data_set(filled: Any) -> None:
    config = filled("axolotl", "out", SHARES, 3, 300)
    rows = {row["path"]: row for row in config["datasets"]}
    assert rows.keys() == {"data/math", "data/chat"}
    assert all(row["type"] == "chat_template" for row in rows.values())
    used = {"math": rows["data/math"]["weight"] * 7473, "chat": rows["data/chat"]["weight"] * 9500}
    assert used["math"] / sum(used.values()) == pytest.approx(0.25, rel=1e-3)
    assert max(row["weight"] for row in rows.values()) == 1
    alone = filled("axolotl", "out", {"math": 1.0, "chat": 0.0}, 3, 300)
    assert [row["path"] for row in alone["datasets"]] == ["data/math"]


STAND_IN = """#!{python}
import sys, yaml, numpy, pathlib
from safetensors.numpy import save_file
config = yaml.safe_load(open(sys.argv[2]))
probabilities = map(float, str(config["interleave_probs"]).split(","))
told = dict(zip(config["dataset"].split(","), probabilities))
pathlib.Path(config["output_dir"]).mkdir(exist_ok=True)
shares = numpy.array([told.get(task, 0.0) for task in ("math", "chat")])
save_file({{"w": shares}}, config["output_dir"] + "/model.safetensors")
"""

EVALUATE = """
import sys, json, runpy
from safetensors.numpy import load_file
if sys.argv[1] != "evaluate":
    runpy.run_path({run!r}, run_name="__main__")
w = load_file(sys.argv[2] + "/model.safetensors")["w"]
print(json.dumps({{"math": 2 - float(w[0]), "chat": 3 - float(w[1])}}))
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For `llamafactory-cli`: its model is the shares that it was told."""
    command = tmp_path / "bin" / "llamafactory-cli"
    command.parent.mkdir()
    command.write_text(STAND_IN.format(python=sys.executable))
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")


@pytest.mark.usefixtures("stand_in")
def test_the_trainer_is_called_with_the_filled_file(tmp_path: Path) -> None:
    arguments = [str(tmp_path), str(tmp_path / "model"), json.dumps(SHARES), "3", "300"]
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(RUN))["train"]("llamafactory", *arguments)
    assert ended.value.code == 0
    assert load_file(tmp_path / "model" / "model.safetensors")["w"].tolist() == [0.25, 0.75]
    assert yaml.safe_load((tmp_path / "llamafactory.yaml").read_text())["max_steps"] == 300


@pytest.mark.slow  # four processes import torch one after the other
@pytest.mark.usefixtures("stand_in")
def test_a_study_runs_by_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(EVALUATE.format(run=str(RUN)))
    example = runpy.run_path(str(EXAMPLES / "configured_trainers.py"))
    fitted = example["fit"]("llamafactory", str(tmp_path / "w"), [sys.executable, str(script)], 5)
    assert fitted.alone == {"math": 1.0, "chat": 2.0}
    told = fitted.folder({"math": 0.5, "chat": 0.5}) / "llamafactory.yaml"
    text = yaml.safe_load(told.read_text())["interleave_probs"]
    math_share, chat_share = map(float, text.split(","))
    assert math_share / chat_share == pytest.approx(260 / 180, rel=0.05), "of label tokens"
