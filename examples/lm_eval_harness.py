"""Score previews and finetunes with EleutherAI's lm-evaluation-harness: multiple choice.

    python examples/lm_eval_harness.py                             # a tiny random Llama
    python examples/lm_eval_harness.py HuggingFaceTB/SmolLM2-135M

You need lm-eval (pip install "optuna-merge[lm-eval]"). A task of the harness is a YAML file. The
script writes one beside its data; you can use your own.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path

import yaml
from datasets import Dataset
from tiny import run, tiny_body

import optuna_merge as om
from optuna_merge.models import from_language_model
from optuna_merge.tasks import language_task, lm_eval_metric


def examples(step: int, size: int, seed: int) -> list[dict[str, object]]:
    """Prompts of two words; the answers are the words `step` further on, among wrong ones."""
    draw = random.Random(seed)
    rows = []
    for _ in range(size):
        words = [draw.randrange(8) for _ in range(2)]
        choices = [" ".join(f"w{(word + s) % 8}" for word in words) for s in range(4)]
        prompt = " ".join(f"w{word}" for word in words) + " :"
        rows.append({"prompt": prompt, "target": choices[step], "choices": choices, "label": step})
    return rows


def harness_task(folder: Path, name: str, rows: list[dict[str, object]]) -> Path:
    """A multiple-choice task as the harness reads it."""
    data = folder / f"{name}.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    definition = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(definition))
    return path


def main() -> None:
    """Which weights of copying and of counting on answer the most questions of both?"""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        body = sys.argv[1] if len(sys.argv) > 1 else tiny_body("llama", folder)
        tasks = []
        for step, what in enumerate(("copy", "next")):
            held_out = examples(step, 40, seed=1)
            splits = {"train": examples(step, 200, seed=0), "validation": held_out}
            metric = lm_eval_metric("acc", harness_task(folder, what, held_out), body)
            splits = {split: Dataset.from_list(rows) for split, rows in splits.items()}
            tasks.append(language_task(what, splits, body, metrics=(metric,)))
        definition = om.StudyDefinition(
            tasks=tasks,
            model=from_language_model(body, tasks),
            finetuning=om.FinetuneSettings(steps=30, batch_size=32, learning_rate=1e-2),
            posterior=om.PosteriorSettings(examples=32, damping_examples=32),
        )
        run(definition, n_trials=8)


if __name__ == "__main__":
    main()
