"""Finetune with your own script, in any language: a study needs two commands.

    python examples/own_command.py

The script examples/tiny/command.py stands for yours, and trains in a moment.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import optuna_merge as om

SCRIPT = f"{sys.executable} {Path(__file__).with_name('tiny') / 'command.py'}"


def main() -> None:
    """Train each task alone, preview weights, train at the best few, print the table."""
    with tempfile.TemporaryDirectory() as workdir:
        fitted = om.from_command(
            SCRIPT + " train {folder} {checkpoint} {weights} {seed} {steps}",
            tasks=["math", "chat"],
            evaluate=SCRIPT + " evaluate {checkpoint}",
            steps=30,
            unit="examples",  # the script samples; its loss is averaged over examples
            checkpoint="model.safetensors",
            workdir=workdir,
            score="worst",
        )
        print(fitted.unit)
        study = om.open_search(fitted, "command", fraction=0.5, warmup=4, seed=0)
        study.optimize(om.Objective(fitted), n_trials=12)
        print(om.format_report(om.make_report(study, fitted)))


if __name__ == "__main__":
    main()
