"""Finetune with LLaMA-Factory or axolotl: their configuration is filled in for each finetune.

    python examples/configured_trainers.py llamafactory
    python examples/configured_trainers.py axolotl

You need the trainer on the PATH (it may be in an environment of its own) and data in the folder
data/. examples/configured/ has the configurations and the script that fills them in.
"""

from __future__ import annotations

import sys
from pathlib import Path

import optuna_merge as om
from optuna_merge.trainers import FittedProgram, WeightUnit

SCRIPT = [sys.executable, str(Path(__file__).with_name("configured") / "run.py")]


def fit(trainer: str, workdir: str, script: list[str] = SCRIPT, steps: int = 300) -> FittedProgram:
    """Each task alone and uniform weights are finetuned, or found."""
    return om.from_command(
        [*script, trainer, "{folder}", "{checkpoint}", "{weights}", "{seed}", "{steps}"],
        ["math", "chat"],
        evaluate=[*script, "evaluate", "{checkpoint}"],
        steps=steps,
        # Both average their loss over label tokens: here the mean numbers of an example.
        unit=WeightUnit("examples", {"math": [180.0], "chat": [260.0]}, batch=16),
        greater_is_better=False,
        workdir=workdir,
        score="worst_relative",
    )


if __name__ == "__main__":
    fitted = fit(sys.argv[1] if len(sys.argv) > 1 else "llamafactory", "workdir")
    study = om.open_search(fitted, "configured", "sqlite:///configured.db", budget=12)
    study.optimize(om.Objective(fitted), n_trials=60)
    print(om.format_report(om.make_report(study, fitted)))
