"""The tutorials, block by block, as a reader would run them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from commands.command_line import prints
from datasets import Dataset
from helpers import save_bert
from language_helpers import TOKENIZER, save_language_model, word_tokenizer

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ m.content + ' : ' }}{% else %}"
    "{% generation %}{{ m.content + ' [EOS]' }}{% endgeneration %}{% endif %}{% endfor %}"
)
TUTORIALS = ROOT / "examples" / "tutorials"


def blocks(name: str, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", (TUTORIALS / name).read_text(), re.M | re.S)
    return [block for word, block in found if word == language]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with README's definition of a small table and a tiny body."""
    monkeypatch.chdir(tmp_path)
    save_bert(tmp_path / "body", layers=2)
    TOKENIZER.save_pretrained(tmp_path / "body")
    rows = [f"w{i % 6} w{i % 5},{i % 2},{'ab'[i % 2]},{'xyz'[i % 3]}" for i in range(60)]
    Path("posts.csv").write_text("\n".join(["text,sentiment,author,topic", *rows, ""]))
    text = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)[0]
    for before, after in (
        ("sentence-transformers/all-MiniLM-L6-v2", "body"),
        ("max_length: 32", "max_length: 8"),
        ("steps: 60", "steps: 4"),
    ):
        assert before in text
        text = text.replace(before, after)
    Path("study.yaml").write_text(text)
    return tmp_path


def ours(block: str, **smaller: str) -> str:
    """What the one command of a block prints."""
    for before, after in smaller.items():
        block = re.sub(rf"(?<=--{before.replace('_', '-')} )\S+", after, block)
    program, *arguments = shlex.split(block)
    assert program == "optuna-merge"
    return prints(*arguments)


@pytest.mark.slow
def test_texts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit, search, diagnose, worst, export = blocks("texts.md", "bash")
    ours(fit)
    assert "Best task weights: sentiment" in ours(search, n_trials="6")
    ours(diagnose)
    text = Path("study.yaml").read_text()
    Path("study.yaml").write_text(text.replace("score: mean", "score: worst"))
    before = sorted(Path("workdir").rglob("*.safetensors"))
    assert "Best task weights: sentiment" in ours(worst, n_trials="4", budget="100")
    assert set(before) <= set(Path("workdir").rglob("*.safetensors"))
    ours(f"{export.strip()} --weights sentiment=.4,author=.3,topic=.3")  # any trial may be best
    (code,) = blocks("texts.md", "python")
    exec(code, {})
    assert capsys.readouterr().out.strip() in ("x", "y", "z")


def test_what_texts_shows_is_of_a_stored_run() -> None:
    stored = (ROOT / "studies" / "text" / "results" / "own-data.txt").read_text()
    shown = [line for block in blocks("texts.md", "") for line in block.splitlines()]
    assert len(shown) == 5 and [line for line in shown if line not in stored] == []


@pytest.mark.slow
def test_machines(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export, fit, finetuning, previewing, report = blocks("machines.md", "bash")
    assert export.startswith("export STORAGE=")
    monkeypatch.setenv("STORAGE", f"sqlite:///{folder}/team.db")
    changes = {"artifacts": str(folder / "shared")}
    ours(fit, **changes)
    ours(previewing, n_trials="12", **changes)
    assert "Best task weights: sentiment" in ours(finetuning, patience="2", **changes)
    ours(report)
    assert "Best task weights" in Path("team.html").read_text()
    study = optuna.load_study(study_name="team", storage=f"sqlite:///{folder}/team.db")
    assert any("promoted_from" in t.user_attrs for t in study.trials)


def test_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForSequenceClassification

    monkeypatch.chdir(tmp_path)
    body = save_bert(tmp_path / "body", layers=1)
    paths, train = {}, {}
    for seed, task in enumerate(("books", "films")):
        torch.manual_seed(seed)
        paths[task] = str(tmp_path / task)
        model = AutoModelForSequenceClassification.from_pretrained(body)
        model.save_pretrained(paths[task])
        rows = torch.randint(0, 50, (8, 5))
        labels = torch.tensor([0, 1] * 4)
        batch = {"input_ids": rows, "attention_mask": torch.ones_like(rows), "labels": labels}
        train[task] = [batch]

    def evaluate(model: Any, task: str) -> float:
        (batch,) = train[task]
        with torch.inference_mode():
            return -float(model(**batch).loss)

    found: dict[str, Any] = {"paths": paths, "train": train, "evaluate": evaluate}
    for block in blocks("checkpoints.md", "python"):
        exec(block, found)
    assert "w_books" in capsys.readouterr().out
    merged = AutoModelForSequenceClassification.from_pretrained("merged").eval()
    assert min(evaluate(merged, task) for task in paths) == pytest.approx(
        found["study"].best_value
    )


@pytest.mark.slow
def test_chats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("trl")
    monkeypatch.chdir(tmp_path)
    body = save_language_model("llama", tmp_path / "body")
    tokenizer = word_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(body)
    chats = {
        task: Dataset.from_list(
            [
                {
                    "messages": [
                        {"role": "user", "content": f"w{i % 6}"},
                        {"role": "assistant", "content": f"w{(i + step) % 6}"},
                    ]
                }
                for i in range(12)
            ]
        )
        for step, task in enumerate(("copy", "next"))
    }
    found: dict[str, Any] = {"body": body, "train": chats, "validation": chats}
    for block in blocks("chats.md", "python"):
        for before, after in (
            ("max_steps=200", "max_steps=4, use_cpu=True, report_to='none'"),
            ("per_device_train_batch_size=16", "per_device_train_batch_size=4"),
            ("n_trials=40", "n_trials=4"),
        ):
            block = block.replace(before, after)
        exec(block, found)
    assert "Best task weights: copy" in capsys.readouterr().out
    (export,) = blocks("chats.md", "bash")
    assert "fraction: " in ours(export)
