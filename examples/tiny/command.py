"""A stand-in for your training script: moves a point towards the tasks' targets, and evaluates it.

python command.py train FOLDER CHECKPOINT '{"math": 0.3, "chat": 0.7}' SEED STEPS
python command.py evaluate CHECKPOINT
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

TARGETS = {"math": np.array([1.0, 0.0, 0.0]), "chat": np.array([0.0, 1.0, 0.2])}


def metrics(point: np.ndarray) -> dict[str, float]:
    """What a task makes of the point; 1 is best."""
    return {task: float(np.exp(-((point - t) ** 2).sum())) for task, t in TARGETS.items()}


def tell(folder: str, step: int, point: np.ndarray) -> None:
    """Add the metrics after a step to the file in which the study looks for them."""
    with Path(folder, "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "metrics": metrics(point)}) + "\n")


def train(folder: str, checkpoint: str, weights: str, seed: str, steps: str) -> None:
    """Sample a task in each step; save and tell the metrics after every tenth."""
    state, shares = Path(folder, "state.safetensors"), json.loads(weights)
    step = int(load_file(state)["step"]) if state.exists() else 0  # goes on
    point = load_file(state)["point"] if step else np.zeros(3)
    if step:
        tell(folder, step, point)  # a kill may have come before; again it changes nothing
    while step < int(steps):
        step += 1
        draw = random.Random(f"{seed} {step}")
        (task,) = draw.choices(list(shares), list(shares.values()))
        point += 0.1 * (TARGETS[task] - point)
        if step % 10 == 0:
            save_file({"point": point, "step": np.array(step)}, state.with_suffix(".new"))
            state.with_suffix(".new").replace(state)
            tell(folder, step, point)
    save_file({"point": point}, checkpoint)


def evaluate(checkpoint: str) -> None:
    """Print the metrics as one line of JSON."""
    print(json.dumps(metrics(load_file(checkpoint)["point"])))


if __name__ == "__main__":
    {"train": train, "evaluate": evaluate}[sys.argv[1]](*sys.argv[2:])
