"""The bodies of the mixture study: a tokenizer, and Llamas of two sizes, pretrained on English.

Each is made once and kept in the cache folder, under a hash of the texts that it comes from.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from optuna_merge import FinetuneSettings, Task
from optuna_merge.finetuning import FinetuneStore
from optuna_merge.models import (
    MultitaskModel,
    evaluate_tasks,
    from_language_model,
    task_batches,
)
from optuna_merge.tasks import Measurement, Metric, token_cross_entropy
from studies.mixture.data import Splits

SYMBOLS = 4096
END = "<end>"
LENGTH = 64
"""Tokens that a window predicts."""


def _shape(width: int, layers: int, inner: int) -> dict[str, Any]:
    return {
        "vocab_size": SYMBOLS,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 4 * LENGTH,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


@dataclass(frozen=True)
class Body:
    """A Llama, how it is pretrained, and how it is finetuned.

    Attributes:
        shape: Its configuration.
        pretraining: On English text; after each rung an interrupted one goes on.
        learning_rate: Of finetunes.
    """

    shape: dict[str, Any]
    pretraining: FinetuneSettings
    learning_rate: float


BODIES = {
    "small": Body(
        _shape(128, 3, 352),
        FinetuneSettings(
            steps=450, batch_size=16, learning_rate=3e-3, num_rungs=1, evaluation_batch_size=64
        ),
        learning_rate=3e-3,
    ),
    "medium": Body(
        _shape(256, 6, 704),
        FinetuneSettings(
            steps=1200,
            batch_size=16,
            learning_rate=2e-3,
            decay="cosine",
            num_rungs=24,
            evaluation_batch_size=64,
        ),
        learning_rate=2e-3,
    ),
}
"""By name: 1.1 and 5.9 million parameters."""

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


def pretrained_body(cache: Path, texts: Sequence[str], english: str, body: str = "small") -> Path:
    """The folder of the tokenizer and the pretrained model.

    Args:
        cache: Where it is kept.
        texts: What the tokenizer is made from, beside the English text: training data only.
        english: What the model is pretrained on; its last tenth judges it.
        body: Its name in `BODIES`.
    """
    made = BODIES[body]
    said = "\0".join([*texts, english, repr(made.shape)])
    folder = cache / f"mixture-body-{hashlib.sha256(said.encode()).hexdigest()[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{folder.name}.lock"):
        if not (folder / "body").is_dir():
            _pretrain(folder, texts, english, made)
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


def english_task(tokenizer: Any, english: str) -> Task:
    """What the bodies are pretrained on; the last tenth of the text is validation data."""
    cut = len(english) * 9 // 10
    splits = {"train": english[:cut], "validation": english[cut:]}
    (task,) = language_tasks({"english": splits}, tokenizer, {"english": 10**6}, 200)
    return task


def english_loss(body: Path, english: str) -> float:
    """A pretrained body's loss on English validation data, in nats a token."""
    task = english_task(AutoTokenizer.from_pretrained(body), english)
    model = from_language_model(str(body), [task])
    batches = task_batches(model, [task], batch_size=64)
    return evaluate_tasks(model, [task], batches)[task.name].metric.value


def _pretrain(folder: Path, texts: Sequence[str], english: str, made: Body) -> None:
    tokenizer = make_tokenizer([*texts, english])
    network = fresh_model(made.shape)
    network.save_pretrained(folder / "fresh")
    task = english_task(tokenizer, english)
    model: MultitaskModel = from_language_model(str(folder / "fresh"), [task])
    store = FinetuneStore(folder / "pretraining", {task.name: model.describe()["hash"]})
    run = store.run(model, [task], {task.name: 1.0}, made.pretraining)
    model.load(run.parameters())
    ready = folder / "body-in-the-making"
    trained: Any = model.body
    trained.save_pretrained(ready)
    tokenizer.save_pretrained(ready)
    ready.rename(folder / "body")
