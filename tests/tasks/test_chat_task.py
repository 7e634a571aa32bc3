"""Chat messages: the template writes them, and the assistant's turns are learnt."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset
from language_helpers import ASKING, END, PAD, TEMPLATE, chat_tokenizer, turns

from optuna_merge.tasks import TensorData, chat_task

N = -100


def table(*conversations: Any) -> Dataset:
    return Dataset.from_dict({"messages": list(conversations)})


def columns(conversations: Dataset, template: str | None = ASKING, **options: Any) -> Any:
    splits = {"train": conversations, "validation": conversations}
    data = chat_task("chat", splits, chat_tokenizer(template), **options).data("train")
    assert isinstance(data, TensorData)
    return {name: column.tolist() for name, column in data.columns.items()}


def test_the_assistants_turns_are_labelled_and_no_others() -> None:
    found = columns(table(turns("w0", "w1"), turns("w2", "w3 w4", "w5", "w0", "w1")))
    # [BOS] w0 [EOS] : w1 [EOS], and the same twice; the last turn of the user is left out.
    assert found["input_ids"][0] == [1, 5, END, 4, 6, END, *[PAD] * 7]
    assert found["labels"][0] == [N, N, N, 6, END, N, *[N] * 7]
    assert found["input_ids"][1] == [1, 7, END, 4, 8, 9, END, 1, 10, END, 4, 5, END]
    assert found["labels"][1] == [N, N, N, 8, 9, END, N, N, N, N, 5, END, N]


def test_long_conversations_keep_their_end() -> None:
    found = columns(table(turns("w2", "w3 w4", "w5", "w0")), max_length=5)
    assert found["input_ids"] == [[1, 10, END, 4, 5, END][1:]]
    assert found["labels"] == [[N, N, 5, END, N]]


def test_a_conversation_may_begin_with_an_answer() -> None:
    found = columns(table([{"role": "assistant", "content": "w1"}]))
    assert found["input_ids"] == [[4, 6, END]]
    assert found["labels"] == [[6, END, N]]


def test_templates_that_forget_make_an_example_of_every_answer() -> None:
    forgets = "{{ m.content if m.role == 'user' or loop.last else 'w5' }}"
    found = columns(
        table(turns("w0", "w1", "w2", "w3")), ASKING.replace("{{ m.content }}", forgets)
    )
    assert found["input_ids"][0] == [1, 5, END, 4, 6, END, *[PAD] * 6]
    assert found["input_ids"][1] == [1, 5, END, 4, 10, END, 1, 7, END, 4, 8, END]
    assert found["labels"][1] == [N] * 9 + [8, END, N]


@pytest.mark.parametrize(
    ("conversation", "template", "told"),
    [
        (turns("w0", "w1"), None, "task 'chat': the tokenizer has no chat template"),
        (turns("w0"), ASKING, "train data: example 0: there is no turn of the role 'assistant'"),
        ([], ASKING, "no turn of the role 'assistant' to learn from .the roles are: none"),
        ("w0 w1", ASKING, "example 0: expected a list of messages, got str"),
        ([{"from": "user", "value": "w0"}], ASKING, "message 0 is .*; expected role and content"),
        (turns("w0", "w1"), "{{ raise_exception('no users') }}", "template refuses it: no users"),
        (turns("w0", "w1"), TEMPLATE, "writes message 1 otherwise than it asks for an answer"),
    ],
)
def test_what_can_not_be_learnt_is_told(conversation: Any, template: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        columns(table(conversation), template)


def test_the_column_is_named() -> None:
    with pytest.raises(ValueError, match="no column 'talk' among"):
        columns(table(turns("w0", "w1")), messages="talk")
