"""A tiny classifier and a tiny language model in Trainers of their own, and data for them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from datasets import Dataset
from language_helpers import PAD, WORDS
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

STEPS = 6


def points(task: str, size: int = 48) -> Dataset:
    """Token sequences whose class is a matter of one place, another one for each task."""
    place = sum(map(ord, task)) % 4
    generator = torch.Generator().manual_seed(len(task))
    tokens = torch.randint(1, 50, (size, 6), generator=generator)
    return Dataset.from_dict(
        {"input_ids": tokens.tolist(), "labels": (tokens[:, place] % 2).tolist()}
    )


@functools.cache
def classification_data(*names: str) -> tuple[dict[str, Dataset], dict[str, Dataset]]:
    """Training and validation data by task."""
    return {n: points(n) for n in names}, {n: points(n + " ", 20) for n in names}


def bert() -> BertForSequenceClassification:
    """Of a few thousand parameters, with dropout."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=50, intermediate_size=16, max_position_embeddings=8, **sizes)
    return BertForSequenceClassification(config)


def llama() -> LlamaForCausalLM:
    """Of a few thousand parameters, over the words of `language_helpers`."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=32,
            pad_token_id=PAD,
        )
    )


def texts(length: int, step: int, size: int = 32) -> Dataset:
    """Words each of which is `step` after the one before, some of them prompts."""
    rows = []
    for start in range(size):
        ids = [5 + (start + step * k) % 6 for k in range(length + 1)]
        rows.append(
            {"input_ids": ids, "labels": [-100, *ids[1:]], "attention_mask": [1] * len(ids)}
        )
    return Dataset.from_list(rows)


def pad(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows of several lengths as one batch."""
    fill = {"input_ids": PAD, "labels": -100, "attention_mask": 0}
    longest = max(len(row["input_ids"]) for row in rows)
    return {
        key: torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in rows])
        for key, value in fill.items()
    }


class MakeTrainer:
    """Makes Trainers; picklable, and with what a test wants changed.

    Args:
        evaluated: Validation data by task.
        model: Makes the model.
        kind: The class.
        more: Arguments of the Trainer besides.
        changes: Training arguments.
    """

    def __init__(
        self,
        evaluated: dict[str, Any],
        model: Any = bert,
        kind: type[Trainer] = Trainer,
        more: dict[str, Any] | None = None,
        **changes: Any,
    ) -> None:
        self.evaluated, self.model, self.kind = evaluated, model, kind
        self.more, self.changes = more or {}, changes

    def __call__(self, folder: str) -> Trainer:
        arguments: dict[str, Any] = {
            "output_dir": folder,
            "max_steps": STEPS,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "disable_tqdm": True,
            "use_cpu": True,
            "report_to": "none",
        }
        args = TrainingArguments(**(arguments | self.changes))
        model: nn.Module = self.model()
        return self.kind(model=model, args=args, eval_dataset=self.evaluated, **self.more)
