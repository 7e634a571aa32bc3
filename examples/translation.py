"""Translation with an encoder-decoder model, scored by the texts that it writes.

    python examples/translation.py                # a tiny random T5, no network
    python examples/translation.py google-t5/t5-small

You need sacrebleu (pip install "optuna-merge[text]") for the metrics `chrf` and `bleu`.
"""

from __future__ import annotations

import random
import sys
import tempfile
from functools import partial
from pathlib import Path

from datasets import Dataset
from tiny import run, tiny_body
from transformers import AutoTokenizer

import optuna_merge as om
from optuna_merge.models import GenerationSettings, from_language_model
from optuna_merge.tasks import chrf, seq2seq_task, text_metric


def examples(shift: int, size: int) -> Dataset:
    """Sentences of one to three words, and their words in another language."""
    draw = random.Random(size + shift)
    rows = []
    for _ in range(size):
        words = [draw.randrange(6) for _ in range(draw.choice((1, 2, 3)))]
        target = " ".join(f"w{word + shift}" for word in words)
        rows.append({"source": " ".join(f"w{word}" for word in words), "target": target})
    return Dataset.from_list(rows)


def main() -> None:
    """Which weights of two languages give the best translator into both?"""
    with tempfile.TemporaryDirectory() as folder:
        body = sys.argv[1] if len(sys.argv) > 1 else tiny_body("t5", Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(body)
        decode = partial(tokenizer.batch_decode, skip_special_tokens=True)
        tasks = [
            seq2seq_task(
                name,
                {"train": examples(shift, 200), "validation": examples(shift, 32)},
                tokenizer,
                metrics=(text_metric("chrf", chrf, decode, length=8),),
            )
            for name, shift in (("northern", 10), ("southern", 20))
        ]
        generation = GenerationSettings(max_new_tokens=4)  # num_beams=4 for beam search
        definition = om.StudyDefinition(
            tasks=tasks,
            model=from_language_model(body, tasks, generation=generation),
            finetuning=om.FinetuneSettings(
                steps=60, batch_size=32, learning_rate=1e-2, num_rungs=1
            ),
            posterior=om.PosteriorSettings(examples=32, damping_examples=16),
        )
        run(definition, n_trials=6)


if __name__ == "__main__":
    main()
