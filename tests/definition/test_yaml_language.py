"""YAML definitions of language models: the same study as Python's, and errors with their line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from language_helpers import chat_tokenizer, save_language_model, turns
from yaml_helpers import same_study, written

from optuna_merge import StudyDefinition
from optuna_merge.definition import TEMPLATES, load_yaml
from optuna_merge.definition._document import read_document
from optuna_merge.definition._schema import check
from optuna_merge.models import from_language_model
from optuna_merge.tasks import (
    chat_task,
    language_task,
    perplexity,
    seq2seq_task,
    token_accuracy,
    token_loss,
)

ROWS = [{"prompt": f"w{i % 6} :", "answer": f"w{(i + 1) % 6}", "id": i} for i in range(8)]
CHATS = [{"messages": turns(f"w{i % 6}", f"w{i % 5}")} for i in range(8)]
MODEL = "model: {kind: language, name: llama}\n"
DATA = "data: {train: rows.jsonl, validation: rows.jsonl}\n"
TASKS = "tasks: [{name: math}]\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for kind in ("llama", "t5"):
        save_language_model(kind, tmp_path / kind)
        chat_tokenizer().save_pretrained(tmp_path / kind)
    write_lines(tmp_path / "rows.jsonl", ROWS)
    write_lines(tmp_path / "chats.jsonl", CHATS)
    return tmp_path


def write_lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def both(table: Any) -> dict[str, Any]:
    return {"train": table, "validation": table}


def test_prompts_conversations_and_texts(folder: Path) -> None:
    peft = pytest.importorskip("peft")
    Dataset.from_list(ROWS).to_parquet(folder / "rows.parquet")
    text = """
model: {kind: language, name: llama, lora: {r: 2, target_modules: all-linear}, seed: 4}
data:
  validation: rows.parquet
  max_prompt_length: 3
tasks:
  - {name: math, train: rows.jsonl, separator: " : ", max_answer_length: 1, metric: perplexity}
  - {name: chat, train: chats.jsonl, validation: chats.jsonl, messages: messages, max_length: 5}
  - {name: talk, train: rows.jsonl, text: prompt, metric: token_accuracy}
"""
    body, tokenizer = str(folder / "llama"), chat_tokenizer()
    behind = Dataset.from_list([{**row, "prompt": f"{row['prompt']} : "} for row in ROWS])
    rows, chats = Dataset.from_list(ROWS), Dataset.from_list(CHATS)
    tasks = [
        language_task(
            "math",
            both(behind),
            tokenizer,
            target="answer",
            max_prompt_length=3,
            max_target_length=1,
            metrics=(perplexity,),
        ),
        chat_task("chat", both(chats), tokenizer, max_length=5, metrics=(token_loss,)),
        language_task(
            "talk",
            both(rows),
            tokenizer,
            prompt=None,
            target="prompt",
            max_target_length=1024,
            metrics=(token_accuracy,),
        ),
    ]
    adapter = peft.LoraConfig(r=2, lora_alpha=16, target_modules="all-linear")
    model = from_language_model(body, tasks, adapter=adapter, seed=4)
    score = "target:talk\nconstraints: [{task: math, at_most: 30.0}]\n"
    with pytest.raises(ValueError, match="some tasks' metrics are to be maximised and others min"):
        load_yaml(written(folder, text + f"score: {score}"))
    text = text.replace(", metric: token_accuracy", "")
    tasks[2] = language_task(
        "talk",
        both(rows),
        tokenizer,
        prompt=None,
        target="prompt",
        max_target_length=1024,
        metrics=(token_loss,),
    )
    model = from_language_model(body, tasks, adapter=adapter, seed=4)
    expected = StudyDefinition(tasks=tasks, model=model)
    same_study(load_yaml(written(folder, text)), expected)
    assert expected.directions == ("minimize",)


def test_an_encoder_decoder(folder: Path) -> None:
    text = MODEL.replace("llama", "t5") + DATA.replace("{", "{max_prompt_length: 2, ") + TASKS
    body = str(folder / "t5")
    rows = both(Dataset.from_list(ROWS))
    task = seq2seq_task(
        "math",
        rows,
        body,
        source="prompt",
        target="answer",
        max_source_length=2,
        metrics=(token_loss,),
    )
    expected = StudyDefinition(tasks=[task], model=from_language_model(body, [task]))
    same_study(load_yaml(written(folder, text)), expected)


def test_prompts_and_answers_as_turns(folder: Path) -> None:
    text = MODEL + DATA.replace("{", "{chat: true, max_length: 9, ") + TASKS
    rows = [{"messages": turns(row["prompt"], row["answer"])} for row in ROWS]
    task = chat_task(
        "math", both(Dataset.from_list(rows)), chat_tokenizer(), max_length=9,
        metrics=(token_loss,),
    )  # fmt: skip
    model = from_language_model(str(folder / "llama"), [task])
    same_study(load_yaml(written(folder, text)), StudyDefinition(tasks=[task], model=model))


def test_shares_and_missing_answers(folder: Path) -> None:
    rows: list[Any] = [
        {**row, "answer": row["answer"] if i % 4 else ""} for i, row in enumerate(ROWS)
    ]
    write_lines(folder / "rows.jsonl", rows)
    text = MODEL + "data: {train: rows.jsonl, validation: 0.25, test: 0.25}\n" + TASKS
    (task,) = load_yaml(written(folder, text)).tasks
    assert sum(len(task.data(split)) for split in ("train", "validation", "test")) == 6


def test_the_template_is_a_definition(folder: Path) -> None:
    study = check(read_document(written(folder, TEMPLATES["language"])))
    assert [task.name for task in study.tasks] == ["math", "chat"]  # type: ignore[union-attr]
    uncommented = "\n".join(
        line.replace("# ", "", 1) if line.lstrip().startswith("# ") and ":" in line else line
        for line in TEMPLATES["language"].splitlines()
        if not line.startswith(("# A study", "# Every", "# optional", "# For", "# At"))
    )
    check(read_document(written(folder, uncommented)))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            MODEL + DATA.replace("{", "{promt: q, ") + TASKS,
            "study.yaml:2:8: data.promt: unknown key 'promt'; did you mean 'prompt'?",
        ),
        (
            MODEL + DATA + "tasks: [{name: math, label: tone}]\n",
            "study.yaml:3:22: tasks[0].label: unknown key 'label'; there are dataset, config",
        ),
        (
            MODEL.replace("llama", "llama, lora: {rank: 8}") + DATA + TASKS,
            "study.yaml:1:45: model.lora.rank: unknown key 'rank'; there are r, alpha, target_mo",
        ),
        (
            MODEL + DATA + "tasks: [{name: math, answer: reply}]\n",
            "study.yaml:3:30: task 'math', train data: no column 'reply' among ['prompt', 'answ",
        ),
        (
            MODEL + DATA.replace("rows", "chats") + TASKS,
            "no column 'prompt' among ['messages']; of conversations give messages: messages",
        ),
        (
            MODEL + DATA.replace("{train: rows", "{train: empty") + TASKS,
            "study.yaml:2:15: task 'math', train data: ",
        ),
        (
            MODEL + DATA.replace("{train: rows", "{train: unanswered") + TASKS,
            "task 'math', train data: no row has anything in the column 'answer'",
        ),
        (
            MODEL
            + "data: {train: questions.jsonl, validation: 0.5}\n"
            + "tasks: [{name: chat, messages: messages}]\n",
            "study.yaml:3:32: task 'chat', train data: example 0: there is no turn of the role",
        ),
        (
            MODEL + DATA + "tasks: [{name: chat, messages: prompt}]\n",
            "study.yaml:3:32: task 'chat', train data: example 0: expected a list of messages, g",
        ),
        (
            MODEL.replace("llama", "plain") + DATA.replace("rows", "chats")
            + "tasks: [{name: chat, messages: messages}]\n",
            "study.yaml:3:32: task 'chat': the tokenizer has no chat template",
        ),
        (
            MODEL + DATA + "tasks: [{name: math, messages: m, text: t}]\n",
            "study.yaml:3:41: task 'math': both messages: and text: are given",
        ),
        (
            MODEL.replace("llama", "t5") + DATA + "tasks: [{name: math, text: prompt}]\n",
            "study.yaml:3:28: task 'math': text is for causal language models",
        ),
        (
            MODEL.replace("llama", "t5") + DATA + "tasks: [{name: math, chat: true}]\n",
            "study.yaml:3:28: task 'math': chat is for causal language models",
        ),
        (
            MODEL.replace("llama", "no-such-model") + DATA + TASKS,
            "study.yaml:1:31: model 'no-such-model': ",
        ),
        (
            MODEL.replace("llama", "llama, batch_norm: pretrained") + DATA + TASKS,
            "model.batch_norm: unknown key 'batch_norm'",
        ),
    ],
)  # fmt: skip
def test_errors_name_the_line(folder: Path, text: str, told: str) -> None:
    (folder / "empty.jsonl").write_text("")
    write_lines(folder / "unanswered.jsonl", [{**row, "answer": None} for row in ROWS])
    write_lines(folder / "questions.jsonl", [{"messages": turns("w0")}] * 4)
    if "plain" in text:
        save_language_model("llama", folder / "plain")
        chat_tokenizer(None).save_pretrained(folder / "plain")
    with pytest.raises(ValueError) as error:
        load_yaml(written(folder, text))
    assert told in str(error.value)
