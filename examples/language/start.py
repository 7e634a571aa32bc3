"""A study of a language model without any Python of your own: its data are here, and its YAML.

    python examples/language/start.py FOLDER
    optuna-merge optimize FOLDER/study.yaml --n-trials 12 --seed 0

This copies them into a folder, and puts a tiny random Llama beside them, with a tokenizer of the
data's words and a chat template. With your own model only its name in study.yaml differs.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[BOS]", "[EOS]", "[UNK]", "user:", "assistant:"]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }} [EOS] {% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def main(folder: Path) -> None:
    """Fill the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    texts: list[str] = []
    for file in sorted(Path(__file__).parent.iterdir()):
        if file.suffix in (".yaml", ".jsonl"):
            shutil.copy(file, folder)
        if file.suffix == ".jsonl":
            rows = map(json.loads, file.read_text().splitlines())
            for row in rows:
                texts += [turn["content"] for turn in row.get("messages", [])]
                texts += [row[column] for column in ("prompt", "answer") if column in row]
    words = SPECIAL + sorted({word for text in texts for word in text.split()})
    known = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    known.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokens = {"pad_token": "[PAD]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=known, unk_token="[UNK]", **tokens)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(
        vocab_size=len(words), num_attention_heads=4, max_position_embeddings=64, **sizes, **ids
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
