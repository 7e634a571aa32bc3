"""One finetune by LLaMA-Factory or axolotl: fills its configuration with the weights, and trains.

    python run.py llamafactory FOLDER CHECKPOINT WEIGHTS SEED STEPS   # WEIGHTS as a JSON object
    python run.py evaluate CHECKPOINT

The trainers may live in environments of their own: what is called is `llamafactory-cli` and
`axolotl` on the PATH.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from optuna_merge.trainers import mixture_lines

HERE = Path(__file__).parent
EXAMPLES = {"math": 7473, "chat": 9500}
"""Rows of the training data; axolotl takes parts of data sets."""
COMMANDS = {"llamafactory": ("llamafactory-cli", "train"), "axolotl": ("axolotl", "train")}


def filled(trainer: str, checkpoint: str, shares: dict[str, float], seed: int, steps: int) -> Any:
    """The trainer's configuration of one finetune; tasks without weight are left out."""
    config = yaml.safe_load((HERE / f"{trainer}.yaml").read_text())
    mixture = yaml.safe_load(mixture_lines(shares, trainer, examples=EXAMPLES))
    if trainer == "axolotl":
        sets = {Path(row["path"]).name: row for row in config["datasets"]}
        parts = {row["path"]: row["weight"] for row in mixture["datasets"]}
        mixture = {"datasets": [sets[task] | {"weight": part} for task, part in parts.items()]}
    return config | mixture | {"output_dir": checkpoint, "seed": seed, "max_steps": steps}


def check_version() -> None:
    """See that axolotl reads the parts of data sets; before 0.20 it would take all rows."""
    told = subprocess.run(["axolotl", "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"(\d+)\.(\d+)", told.stdout)
    if found and tuple(map(int, found.groups())) < (0, 20):
        sys.exit(
            f"axolotl {found[0]} doesn't know the weight of a data set, and would train on all "
            f"rows whatever the task weights are; install axolotl 0.20 or newer"
        )


def train(trainer: str, folder: str, checkpoint: str, shares: str, seed: str, steps: str) -> None:
    """Write the configuration into the run's folder, and train by it."""
    if trainer == "axolotl":
        check_version()
    config = filled(trainer, checkpoint, json.loads(shares), int(seed), int(steps))
    path = Path(folder, f"{trainer}.yaml")
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    sys.exit(subprocess.run([*COMMANDS[trainer], str(path)]).returncode)


def evaluate(checkpoint: str) -> None:
    """Print each task's mean loss on held-out texts, data/TASK/validation.jsonl, as JSON."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    model = AutoPeftModelForCausalLM.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    losses: dict[str, float] = {}
    for task in EXAMPLES:
        rows = Path("data", task, "validation.jsonl").read_text().splitlines()
        texts = [
            tokenizer.apply_chat_template(json.loads(r)["messages"], tokenize=False) for r in rows
        ]
        with torch.no_grad():
            batches = [tokenizer(text, return_tensors="pt").to(model.device) for text in texts]
            each = [float(model(**b, labels=b["input_ids"]).loss) for b in batches]
        losses[task] = sum(each) / len(each)
    print(json.dumps(losses))


if __name__ == "__main__":
    evaluate(*sys.argv[2:]) if sys.argv[1] == "evaluate" else train(*sys.argv[1:])
