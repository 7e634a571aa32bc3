"""Stand-ins made on the spot, so that the examples run in seconds and without a network."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

import optuna_merge as om

SPECIAL = ["[PAD]", "[BOS]", "[EOS]", "[UNK]"]
WORDS = [*SPECIAL, ":", *(f"w{i}" for i in range(60))]


def tiny_body(kind: str, folder: Path) -> str:
    """A "bert", "llama" or "t5" of random values with a word tokenizer, as a folder."""
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokens = {"pad_token": "[PAD]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", **tokens)
    ids = {"vocab_size": len(WORDS), "pad_token_id": 0, "eos_token_id": 2}
    torch.manual_seed(0)
    if kind == "bert":
        sizes = {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 32}
        layers = {"num_hidden_layers": 2, "num_attention_heads": 4}
        model = BertModel(BertConfig(vocab_size=len(WORDS), **sizes, **layers))
    elif kind == "llama":
        sizes = {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 32}
        layers = {"num_hidden_layers": 2, "num_attention_heads": 4}
        model = LlamaForCausalLM(LlamaConfig(**ids, bos_token_id=1, **sizes, **layers))
    else:
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
        config = T5Config(**ids, decoder_start_token_id=0, dropout_rate=0.0, **sizes)
        model = T5ForConditionalGeneration(config)
    model.save_pretrained(folder / kind)
    tokenizer.save_pretrained(folder / kind)
    return str(folder / kind)


def run(definition: om.StudyDefinition, n_trials: int, fraction: float = 0.25) -> None:
    """Fit, search and print the table; examples/plain_module.py has each step."""
    with tempfile.TemporaryDirectory() as workdir:
        fitted = om.fit(definition, workdir, progress=False)
        study = om.open_search(fitted, "example", fraction=fraction, seed=0)
        study.optimize(om.Objective(fitted, progress=False), n_trials=n_trials)
        print(om.format_report(om.make_report(study, fitted)))
