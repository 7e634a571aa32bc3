"""A word tokenizer, a tiny Llama, a tiny T5, and tasks that they learn in seconds."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from optuna_merge.models import GenerationSettings, MultitaskModel, from_language_model
from optuna_merge.tasks import (
    Metric,
    Task,
    chrf,
    language_task,
    seq2seq_task,
    text_metric,
    token_accuracy,
)

PAD, BEGIN, END, UNKNOWN = range(4)
WORDS = ["[PAD]", "[BOS]", "[EOS]", "[UNK]", ":", *(f"w{i}" for i in range(6))]


def word_tokenizer() -> Any:
    """One token a word; no special tokens around texts."""
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        unk_token="[UNK]",
    )


TOKENIZER = word_tokenizer()
TEMPLATE = (
    "{% for m in messages %}{{ '[BOS] ' if m.role == 'user' }}{{ m.content }} [EOS] {% endfor %}"
    "{% if add_generation_prompt %}: {% endif %}"
)
"""A chat template that asks for an answer by a colon, with which no answer begins."""
ASKING = TEMPLATE.replace(
    "{{ '[BOS] ' if m.role == 'user' }}", "{{ '[BOS] ' if m.role == 'user' else ': ' }}"
)
"""One whose answers begin as they are asked for."""
SETTINGS = GenerationSettings(max_new_tokens=4)


def chat_tokenizer(template: str | None = ASKING) -> Any:
    tokenizer = word_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def turns(*contents: str) -> list[dict[str, str]]:
    """Messages of the user and the assistant in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def translations(step: int, size: int, seed: int) -> Dataset:
    """One to three words, to be translated into those `step` further in a ring of six."""
    generator = torch.Generator().manual_seed(seed)
    sources, targets = [], []
    for _ in range(size):
        count = int(torch.randint(1, 4, (), generator=generator))
        words = torch.randint(0, 6, (count,), generator=generator).tolist()
        sources.append(" ".join(f"w{word}" for word in words) + " :")
        targets.append(" ".join(f"w{(word + step) % 6}" for word in words))
    return Dataset.from_dict({"source": sources, "target": targets})


def chrf_metric() -> Metric:
    decode = partial(TOKENIZER.batch_decode, skip_special_tokens=True)
    return text_metric("chrf", partial(chrf, groups=5), decode, length=4)


def translation_tasks(kind: str, *, size: int = 200, **options: Any) -> tuple[Task, ...]:
    """The task "same" (copy) and "next" (the next word of the ring), for a "llama" or a "t5"."""
    options = {"metrics": (chrf_metric(), token_accuracy)} | options
    tasks = []
    for step, name in enumerate(("same", "next")):
        splits = {"train": translations(step, size, step), "validation": translations(step, 40, 9)}
        tasks.append(
            language_task(name, splits, TOKENIZER, prompt="source", **options)
            if kind == "llama"
            else seq2seq_task(name, splits, TOKENIZER, **options)
        )
    return tuple(tasks)


def save_language_model(kind: str, folder: Path) -> str:
    """A "llama" or a "t5" of some ten thousand parameters as `from_pretrained` reads it."""
    torch.manual_seed(0)
    special = {"vocab_size": len(WORDS), "pad_token_id": PAD, "eos_token_id": END}
    if kind == "llama":
        config = LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=32,
            bos_token_id=BEGIN,
            **special,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
    else:
        config = T5Config(
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            decoder_start_token_id=PAD,
            **special,
        )
        T5ForConditionalGeneration(config).save_pretrained(folder)
    return str(folder)


def language_model(folder: str, tasks: tuple[Task, ...], **options: Any) -> MultitaskModel:
    """The multitask model around a saved one."""
    return from_language_model(folder, tasks, **({"generation": SETTINGS} | options))
