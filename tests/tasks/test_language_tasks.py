from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from datasets import Dataset
from language_helpers import BEGIN, END, PAD, WORDS, word_tokenizer
from tokenizers import processors

from optuna_merge.tasks import Task, TensorData, language_task, seq2seq_task, token_cross_entropy


def table(**columns: list[str]) -> Dataset:
    texts = {"prompt": ["w0 w1 :", "w2 :"], "target": ["w1", "w3 w4 w5"]}
    texts["source"] = texts["prompt"]
    return Dataset.from_dict(texts | columns)


def columns(task: Task, split: str = "train") -> dict[str, Any]:
    data = task.data(split)
    assert isinstance(data, TensorData)
    return {name: column.tolist() for name, column in data.columns.items()}


SPLITS = {"train": table(), "validation": table()}
N = -100


def test_targets_and_their_end_are_labelled_one_position_earlier() -> None:
    task = language_task("go_on", SPLITS, word_tokenizer())
    assert columns(task) == {
        "input_ids": [[5, 6, 4, 6, END, PAD], [7, 4, 8, 9, 10, END]],
        "attention_mask": [[1, 1, 1, 1, 1, 0], [1] * 6],
        "labels": [[N, N, 6, END, N, N], [N, 8, 9, 10, END, N]],
    }
    assert task.num_outputs == len(WORDS)
    assert task.loss is token_cross_entropy
    assert task.metric.name == "token_accuracy"
    assert task.test is None


def test_a_decoder_is_given_its_labels_one_position_later() -> None:
    task = seq2seq_task("turn", SPLITS | {"test": table()}, word_tokenizer(), head="one")
    assert columns(task, "test") == {
        "input_ids": [[5, 6, 4], [7, 4, PAD]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "labels": [[6, END, N, N], [8, 9, 10, END]],
        "decoder_input_ids": [[PAD, 6, PAD, PAD], [PAD, 8, 9, 10]],
    }
    assert task.head == "one"
    start = seq2seq_task("turn", SPLITS, word_tokenizer(), start=END)
    assert [row[0] for row in columns(start)["decoder_input_ids"]] == [END, END]


def test_long_texts_are_cut() -> None:
    task = language_task("cut", SPLITS, word_tokenizer(), max_prompt_length=2, max_target_length=2)
    assert columns(task)["input_ids"] == [[6, 4, 6, END], [7, 4, 8, 9]]  # no room for an end
    assert columns(task)["labels"] == [[N, 6, END, N], [N, 8, 9, N]]
    task = seq2seq_task("cut", SPLITS, word_tokenizer(), max_source_length=1, max_target_length=3)
    assert columns(task)["input_ids"] == [[5], [7]]
    assert columns(task)["labels"] == [[6, END, N], [8, 9, 10]]


def around(tokenizer: Any) -> Any:
    """With a beginning and an end around every text, as many tokenizers do it."""
    special = [("[BOS]", BEGIN), ("[EOS]", END)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=special
    )
    return tokenizer


def test_the_tokenizers_own_tokens_stand_around_prompts_only() -> None:
    tokenizer = around(word_tokenizer())
    task = language_task("go_on", SPLITS, tokenizer)
    assert columns(task)["input_ids"][1] == [BEGIN, 7, 4, 8, 9, 10, END]
    bare = language_task("go_on", SPLITS, tokenizer, special_tokens=False)
    assert columns(bare)["input_ids"][1] == [7, 4, 8, 9, 10, END]
    task = seq2seq_task("turn", SPLITS, tokenizer)
    assert columns(task)["input_ids"][1] == [BEGIN, 7, 4, END, PAD]
    assert columns(task)["labels"][1] == [8, 9, 10, END]


def test_without_prompts_all_tokens_but_the_first_are_labelled() -> None:
    task = language_task("talk", SPLITS, word_tokenizer(), prompt=None)
    assert columns(task)["input_ids"] == [[6, END, PAD, PAD], [8, 9, 10, END]]
    assert columns(task)["labels"] == [[END, N, N, N], [9, 10, END, N]]


def test_padding_is_any_token_where_a_tokenizer_has_none() -> None:
    tokenizer = word_tokenizer()
    tokenizer.pad_token = None
    task = language_task("go_on", SPLITS, tokenizer)
    assert columns(task)["input_ids"][0][-1] == END
    assert columns(task)["attention_mask"][0][-1] == 0
    with pytest.raises(ValueError, match="'turn': the tokenizer has no padding token; give start"):
        seq2seq_task("turn", SPLITS, tokenizer)


def test_sources_and_targets_are_cut_to_the_longest_of_a_batch_apart() -> None:
    same_width = table(source=["w0 w1 w2 w3", "w0"])  # as wide as the targets
    task = seq2seq_task("turn", {"train": same_width, "validation": same_width}, word_tokenizer())
    data = task.data("train")
    shapes = {name: tuple(column.shape) for name, column in data[[0]].items()}
    assert shapes == {
        "input_ids": (1, 4),
        "attention_mask": (1, 4),
        "labels": (1, 2),
        "decoder_input_ids": (1, 2),
    }
    batch = data[[1]]
    assert batch["input_ids"].tolist() == [[5]]
    assert batch["labels"].tolist() == [[8, 9, 10, END]]
    assert torch.equal(data[[1, 0]]["labels"][1], torch.tensor([6, END, N, N]))


@pytest.mark.parametrize("build", [language_task, seq2seq_task])
def test_bad_tables_and_tokenizers_are_named(build: Any) -> None:
    def refused(message: str, tokenizer: Any = None, **splits: Dataset) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            build("talk", splits, tokenizer or word_tokenizer())

    refused("task 'talk': no split 'validation' among ['train']", train=table())
    bare = table().remove_columns("target")
    refused(
        f"task 'talk', validation data: no column 'target' among {bare.column_names}",
        train=table(),
        validation=bare,
    )
    refused("task 'talk', train data: no examples", train=table().select([]), validation=table())
    endless = word_tokenizer()
    endless.eos_token = None
    refused("task 'talk': the tokenizer has no end token", endless, **SPLITS)


def test_an_example_without_anything_to_predict_is_named() -> None:
    empty = {"train": table(target=["w0", ""]), "validation": table()}
    with pytest.raises(ValueError, match=r"train data: example 1 has no token to predict; .* are"):
        language_task("talk", empty, word_tokenizer(), prompt=None)
