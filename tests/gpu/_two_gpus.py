"""What `test_gpu_processes.py` launches in two processes: FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers import toy_definition, toy_model, toy_tasks

import optuna_merge as om

WEIGHTS = {"red": 0.3, "blue": 0.7}


def definition() -> om.StudyDefinition:
    tasks = toy_tasks()
    return toy_definition(tasks, model=toy_model(tasks, dropout=0.0))


def finetuned(made: om.StudyDefinition, folder: Path) -> om.FittedStudy:
    fitted = om.fit(made, folder, progress=False)
    fitted.store.run(fitted.model, fitted.tasks, WEIGHTS, made.finetuning)
    return fitted


if __name__ == "__main__":
    made = definition()
    with om.process_group(made) as leads:
        if leads:
            finetuned(made, Path(sys.argv[1]))
    print("device", made.model.device)
