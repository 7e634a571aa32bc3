"""Every command on YAML definitions of a training program and of a language model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from language_helpers import TOKENIZER, save_language_model, translations
from safetensors.numpy import save_file

from commands.command_line import TESTS, fails, load_study, prints
from optuna_merge.definition import TEMPLATES, CommandDefinition
from optuna_merge.definition._load import read_definition

SCRIPT = f"{sys.executable} {TESTS.parent / 'examples' / 'tiny' / 'command.py'}"
TRAINER = f"""
trainer:
  kind: command
  train: {SCRIPT} train {{folder}} {{checkpoint}} {{weights}} {{seed}} {{steps}}
  evaluate: {SCRIPT} evaluate {{checkpoint}}
  steps: 30
  unit: {{kind: examples, label_tokens: {{math: 200, chat: 100}}}}
  checkpoint: model.safetensors
tasks: [math, chat]
score: worst
search: {{second_seed: false}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_commands_on_a_program(folder: Path) -> None:
    Path("study.yaml").write_text(TRAINER)
    assert "math: " in prints("fit", "study.yaml")
    text = prints("optimize", "study.yaml", "--n-trials", "5", "--seed", "0", "--keep-going")
    assert "Best task weights: math" in text
    runs = [json.loads(path.read_text()) for path in folder.rglob("finished.json")]
    (uniform,) = [run["given"] for run in runs if set(run["weights"].values()) == {0.5}]
    assert uniform == pytest.approx({"math": 1 / 3, "chat": 2 / 3})
    prints("report", "study.yaml")
    search = ("replay", "study.yaml", "--general", "chat", "--n-trials", "4", "--seed", "0")
    assert "How much chat beside math?" in prints(*search)
    assert len(load_study().trials) >= 5
    told = fails("export", "study.yaml", "--out", "best", "--weights", "math=1")
    assert "study.yaml is a study of a command" in told
    flags = ("--seed", "0", "--keep-going", "--max-promotions", "2", "--keep-best", "1")
    prints("optimize", "study.yaml", "--n-trials", "8", *flags)
    models = sorted(folder.rglob("program-runs/*/model.safetensors"))
    assert len(models) <= 4, "uniform weights, two tasks alone, and the best"
    assert len(list(folder.rglob("finished.json"))) > len(models)
    told = prints("gc", "study.yaml", "--keep-best", "1")
    assert "0 files, 0 bytes removed" in told
    assert sorted(folder.rglob("program-runs/*/model.safetensors")) == models
    assert "nothing was fitted in" in fails("gc", "study.yaml", "--workdir", "elsewhere")
    assert "--artifacts is for" in fails("fit", "study.yaml", "--artifacts", "shared")


def test_given_runs_stand_in_the_file(folder: Path) -> None:
    Path("theirs").mkdir()
    for task, point in (("math", [1.0, 0.0, 0.0]), ("chat", [0.0, 1.0, 0.2])):
        save_file({"point": np.array(point)}, f"theirs/{task}.safetensors")
    runs = "runs:\n  math: {}/math.safetensors\n  chat: {}/chat.safetensors\n"
    Path("theirs/study.yaml").write_text(TRAINER + runs.format(".", "."))
    text = prints("optimize", "theirs/study.yaml", "--n-trials", "4", "--seed", "0")
    assert "Given runs, which cost nothing: math, chat" in text
    assert "given: " in prints("fit", "theirs/study.yaml")
    Path("study.yaml").write_text(TRAINER + runs.format("theirs", "nowhere"))
    assert "study.yaml:14:9: runs: task 'chat': there is no" in fails("fit", "study.yaml")
    Path("study.yaml").write_text(TRAINER + "runs: {chats: theirs/chat.safetensors}\n")
    assert "study.yaml:12:15: runs: no task is called 'chats'" in fails("fit", "study.yaml")


def test_the_template_of_a_program_is_a_definition(folder: Path) -> None:
    prints("init", "study.yaml", "--kind", "command")
    found = read_definition(Path("study.yaml"))
    assert isinstance(found, CommandDefinition)
    assert found.names == ("math", "chat")
    text = "\n".join(
        line.replace("# ", "", 1) if line.startswith("  # ") else line
        for line in TEMPLATES["command"].splitlines()
    )
    Path("study.yaml").write_text(text.replace("  unit: examples", "  ignored: examples"))
    with pytest.raises(ValueError, match="unknown key 'ignored'") as told:
        read_definition(Path("study.yaml"))
    assert len(str(told.value).splitlines()) == 1, "all other lines are right"
    assert "--kind must be one of text, image, l" in fails("init", "a.yaml", "--kind", "video")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("  steps: 30", "  step: 30", "trainer.step: unknown key 'step'; did you mean 'steps'?"),
        ("  steps: 30\n", "", "study.yaml:3:3: trainer: the key 'steps' is missing"),
        (
            "kind: command",
            "kind: shell",
            "study.yaml:3:9: trainer.kind: input should be 'command'",
        ),
        ("score: worst", "score: best", "study.yaml:10:8: score must be one of"),
        ("[math, chat]", "[math, math]", "math"),
        ("{weights}", "", "has none of the placeholders {weights}, {weight}"),
        ("{weights}", "{weight:math}", "has weights of math, but none of chat"),
        ("search: {second_seed: false}", "constraints: [{task: talk, at_least: 1.0}]", "11:14: c"),
        ("kind: examples", "kind: losses", "label_tokens are given for weights that are factors"),
    ],
)
def test_errors_of_a_program(folder: Path, old: str, new: str, told: str) -> None:
    Path("study.yaml").write_text(TRAINER.replace(old, new))
    assert told in fails("fit", "study.yaml")


def test_a_language_model_needs_no_python(folder: Path) -> None:
    pytest.importorskip("peft")
    save_language_model("llama", folder / "llama")
    TOKENIZER.save_pretrained(folder / "llama")
    for step, name in enumerate(("same", "next")):
        translations(step, 60, step).to_json(f"{name}.jsonl")
    text = TEMPLATES["language"].replace("HuggingFaceTB/SmolLM2-135M", "llama")
    text = text.replace("{r: 8, alpha: 16}", "{r: 2, alpha: 16}")
    text = text.replace("prompt: prompt", "prompt: source").replace(
        "answer: answer", "answer: target"
    )
    text = text.replace("name: math", "name: same").replace("math.jsonl", "same.jsonl")
    text = text.replace("name: chat", "name: next").replace("chat.jsonl", "next.jsonl")
    text = text.replace("    messages: messages", "    # messages: messages")
    text = text.replace("steps: 200", "steps: 4")
    Path("study.yaml").write_text(text + "posterior: {examples: 4, damping: 1.0}\n")
    told = prints("optimize", "study.yaml", "--n-trials", "4", "--seed", "0")
    assert "Best task weights: same" in told
    prints("export", "study.yaml", "--out", "best", "--weights", "next=1")
    assert Path("best/adapter_config.json").is_file() or list(Path("best").rglob("*.safetensors"))
