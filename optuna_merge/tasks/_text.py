"""Text classification tasks from `datasets.Dataset`s."""

from __future__ import annotations

from typing import Any

import torch

from optuna_merge.tasks._data import LABELS, TensorData
from optuna_merge.tasks._pretrained import load_tokenizer
from optuna_merge.tasks._splits import classification, tables_of
from optuna_merge.tasks._task import Task


def text_task(
    name: str,
    splits: Any,
    tokenizer: Any,
    *,
    num_labels: int | None = None,
    text: str | tuple[str, str] = "text",
    label: str = "label",
    max_length: int = 128,
    **options: Any,
) -> Task:
    """A `Task` that classifies texts, tokenised once and held in memory.

    Args:
        name: The task's name.
        splits: `{"train": ..., "validation": ..., "test": ...}` of `datasets.Dataset` (a
            `DatasetDict` will do); "test" may be missing.
        tokenizer: A Hugging Face tokenizer, or the name or folder of one.
        num_labels: Classes; default: the label feature's, or else the largest training label + 1.
        text: Column of the texts, or a pair of columns.
        label: Column of the integer labels.
        max_length: Tokens to keep of each text.
        **options: Further fields of `Task`, such as `head` and `metrics`.

    Raises:
        ValueError: a split or column that is missing, a tokenizer without a padding token.
        FileNotFoundError: there is no tokenizer of this name or in this folder.
    """
    tokenizer = load_tokenizer(tokenizer)
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"task {name!r}: the tokenizer has no padding token, which texts of different lengths "
            f"need; set one that the body knows, such as tokenizer.pad_token = "
            f"tokenizer.eos_token, and save it with the body"
        )
    columns = (text,) if isinstance(text, str) else text
    data: dict[str, TensorData] = {}
    for split, _, table in tables_of(name, splits, (*columns, label)):
        texts = [list(table[column]) for column in columns]
        encoded = tokenizer(
            *texts, truncation=True, max_length=max_length, padding=True, return_tensors="pt"
        )
        labels = torch.as_tensor(list(table[label]))
        data[split] = TensorData({**encoded, LABELS: labels}, vocabulary=len(tokenizer))
    return classification(name, data, splits["train"], label, num_labels, options)
