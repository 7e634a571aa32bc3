"""The body of the mixture study: a tokenizer and a small Llama, pretrained on English text.

Both are made once and kept in the cache folder, under a hash of the texts that they come from.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from optuna_merge import FinetuneSettings, Task
from optuna_merge.finetuning import FinetuneStore
from optuna_merge.models import MultitaskModel, from_language_model
from optuna_merge.tasks import Measurement, Metric, token_cross_entropy
from studies.mixture.data import Splits

SYMBOLS = 4096
END = "<end>"
LENGTH = 64
"""Tokens that a window predicts."""

SHAPE = {
    "vocab_size": SYMBOLS,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 4 * LENGTH,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}

PRETRAINING = FinetuneSettings(
    steps=450, batch_size=16, learning_rate=3e-3, num_rungs=1, evaluation_batch_size=64
)

_MOST_CHARACTERS = 16
"""Of a token; the text behind what that needs is not read."""

_OF_EACH = 250_000
"""Characters of each text that the tokenizer is made from, so that none is favoured."""


def _per_window(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return token_cross_entropy(outputs.float(), labels), labels[:, :1]


def _mean(losses: Tensor, labels: Tensor) -> Measurement:
    error = float(losses.double().std()) / len(losses) ** 0.5 if len(losses) > 1 else math.nan
    return Measurement(float(losses.double().mean()), error)


window_loss = Metric("loss", _mean, greater_is_better=False, condense=_per_window)
"""Mean cross-entropy a token, in nats; windows are of one length, so each weighs the same."""


def windows(tokenizer: Any, text: str, most: int, length: int = LENGTH) -> dict[str, Tensor]:
    """Up to `most` windows of a text, at equal distances over all of it.

    Args:
        tokenizer: A Hugging Face tokenizer.
        text: The text.
        most: Windows at most; fewer where the text is shorter.
        length: Tokens that each predicts.

    Raises:
        ValueError: the text is shorter than one window.
    """
    text = text[: _MOST_CHARACTERS * most * length]
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    count = min(most, (len(ids) - 1) // length)
    if count < 1:
        raise ValueError(f"a window has {length} tokens and one more, the text has {len(ids)}")
    starts = [i * ((len(ids) - 1) // length) // count * length for i in range(count)]
    rows = torch.stack([ids[start : start + length + 1] for start in starts])
    return {"input_ids": rows[:, :-1].contiguous(), "labels": rows[:, 1:].contiguous()}


def language_tasks(
    texts: Mapping[str, Splits],
    tokenizer: Any,
    sizes: Mapping[str, int],
    judged: int,
    length: int = LENGTH,
) -> list[Task]:
    """A task for each text; its metric is the mean loss a token.

    Args:
        texts: Text by task and split.
        tokenizer: A Hugging Face tokenizer.
        sizes: Training windows by task.
        judged: Windows of validation data, and of test data.
        length: Tokens of a window.
    """

    def task(name: str, splits: Splits) -> Task:
        made = {
            split: windows(tokenizer, text, sizes[name] if split == "train" else judged, length)
            for split, text in splits.items()
        }
        return Task(
            name,
            made["train"],
            made["validation"],
            len(tokenizer),
            test=made.get("test"),
            loss=token_cross_entropy,
            metrics=(window_loss,),
        )

    return [task(name, splits) for name, splits in texts.items()]


def pretrained_body(cache: Path, texts: Sequence[str], english: str) -> Path:
    """The folder of the tokenizer and the pretrained model.

    Args:
        cache: Where it is kept.
        texts: What the tokenizer is made from, beside the English text: training data only.
        english: What the model is pretrained on; its last tenth judges it.
    """
    key = hashlib.sha256("\0".join([*texts, english, repr(SHAPE)]).encode()).hexdigest()[:16]
    folder = cache / f"mixture-body-{key}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{folder.name}.lock"):
        if not (folder / "body").is_dir():
            _pretrain(folder, texts, english)
    return folder / "body"


def make_tokenizer(texts: Sequence[str], symbols: int = SYMBOLS) -> Any:
    """A byte-level BPE of as much of each text; its first symbol ends texts."""
    bpe = ByteLevelBPETokenizer()
    pieces = [text[:_OF_EACH] for text in texts]
    bpe.train_from_iterator(pieces, vocab_size=symbols, special_tokens=[END], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token=END, bos_token=END, pad_token=END
    )


def fresh_model(shape: Mapping[str, Any]) -> LlamaForCausalLM:
    """A Llama with random parameters, always the same ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**shape))


def _pretrain(folder: Path, texts: Sequence[str], english: str) -> None:
    tokenizer = make_tokenizer([*texts, english])
    network = fresh_model(SHAPE)
    network.save_pretrained(folder / "fresh")
    cut = len(english) * 9 // 10
    splits = {"train": english[:cut], "validation": english[cut:]}
    (task,) = language_tasks({"english": splits}, tokenizer, {"english": 10**6}, 200)
    model: MultitaskModel = from_language_model(str(folder / "fresh"), [task])
    store = FinetuneStore(folder / "pretraining", {task.name: model.describe()["hash"]})
    run = store.run(model, [task], {"english": 1.0}, PRETRAINING)
    model.load(run.parameters())
    ready = folder / "body-in-the-making"
    body: Any = model.body
    body.save_pretrained(ready)
    tokenizer.save_pretrained(ready)
    ready.rename(folder / "body")
