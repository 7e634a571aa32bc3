"""LoRA with peft on a causal language model: only the factors B are trained and merged.

    python examples/lora_language_model.py                             # a tiny random Llama
    python examples/lora_language_model.py HuggingFaceTB/SmolLM2-135M

You need peft (pip install "optuna-merge[peft]").
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import peft
from datasets import Dataset
from tiny import run, tiny_body

import optuna_merge as om
from optuna_merge.models import from_language_model
from optuna_merge.tasks import language_task, perplexity, token_accuracy


def examples(step: int, size: int) -> Dataset:
    """Prompts of one or two words; the answers are the words `step` further on."""
    draw = random.Random(size + step)
    rows = []
    for _ in range(size):
        words = [draw.randrange(8) for _ in range(draw.choice((1, 2)))]
        answer = " ".join(f"w{(word + step) % 8}" for word in words)
        rows.append({"prompt": " ".join(f"w{word}" for word in words) + " :", "target": answer})
    return Dataset.from_list(rows)


def main() -> None:
    """Which weights of copying and of counting on give the best model of both?"""
    with tempfile.TemporaryDirectory() as folder:
        body = sys.argv[1] if len(sys.argv) > 1 else tiny_body("llama", Path(folder))
        tasks = [
            language_task(
                name,
                {"train": examples(step, 200), "validation": examples(step, 60)},
                body,
                metrics=(token_accuracy, perplexity),  # the first one is the score's
            )
            for name, step in (("copy", 0), ("next", 1))
        ]
        adapter = peft.LoraConfig(r=8, lora_alpha=32, target_modules="all-linear")
        definition = om.StudyDefinition(
            tasks=tasks,
            model=from_language_model(body, tasks, adapter=adapter),
            finetuning=om.FinetuneSettings(steps=40, batch_size=32, learning_rate=2e-2),
            posterior=om.PosteriorSettings(examples=32, damping_examples=32),
            score="worst",
        )
        run(definition, n_trials=8)


if __name__ == "__main__":
    main()
