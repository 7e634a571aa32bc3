"""A causal language model on three sources: a complete study of your Trainer in 25 lines.

    python examples/causal_trainer.py                              # a tiny random Llama
    python examples/causal_trainer.py HuggingFaceTB/SmolLM2-135M

The study finetunes each source alone and uniform weights as baselines, continues after a kill, and
ends with a report and its page.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

from datasets import Dataset
from tiny import tiny_body
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

import optuna_merge as om
from optuna_merge.reports import write_html

STEPS = {"repeat": 0, "rise": 1, "fall": -1}


def texts(step: int, size: int) -> Dataset:
    """Each word is `step` after the one before, in a ring of twelve."""
    draw = random.Random(size + step)
    starts = [draw.randrange(12) for _ in range(size)]
    rows = [" ".join(f"w{(start + step * k) % 12}" for k in range(6)) for start in starts]
    return Dataset.from_dict({"text": rows})


def search(body: str, folder: str, n_trials: int) -> None:
    """From texts to the report; another call with the same folder continues."""
    tokenizer = AutoTokenizer.from_pretrained(body)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    def data(size: int) -> dict[str, Dataset]:
        raw = {task: texts(step, size) for task, step in STEPS.items()}
        return {task: of.map(lambda row: tokenizer(row["text"])) for task, of in raw.items()}

    train, validation = data(60), data(16)

    def make_trainer(output: str) -> Trainer:
        return Trainer(
            AutoModelForCausalLM.from_pretrained(body),
            TrainingArguments(output, max_steps=12, learning_rate=5e-3, disable_tqdm=True),
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
            eval_dataset=validation,
        )

    fitted = om.from_trainer(make_trainer, train, workdir=folder, score="worst_relative")
    study = om.open_search(fitted, "sources", f"sqlite:///{folder}/study.db", seed=0)
    study.optimize(om.Objective(fitted, progress=False), n_trials=n_trials)
    report = om.make_report(study, fitted)
    print(om.format_report(report))
    write_html(f"{folder}/report.html", study, report)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as workdir:
        search(sys.argv[1] if len(sys.argv) > 1 else tiny_body("llama", Path(workdir)), workdir, 8)
