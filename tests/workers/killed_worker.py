"""A study's script in a process that is really killed (SIGKILL) at a chosen point.

    python killed_worker.py POINT SCRIPT [flags of the script]

POINT: `task_run` (after the first checkpoint of the second task's own run), `preview` (the third
trial's merge is made, its evaluation has not begun), `finetune` (after the first checkpoint of a
promoted finetune), `report` (all trials are done, and their report is being made).
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from typing import Any

import optuna_merge.reports
from optuna_merge.finetuning import _store
from optuna_merge.objective import Objective
from optuna_merge.previews import Previewer

point, script, *flags = sys.argv[1:]
finetune, load, preview = _store.finetune, Previewer.load, Objective._preview
make_report = optuna_merge.reports.make_report
trial_number = -1


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def is_the_point(weights: dict[str, float]) -> bool:
    if point == "task_run":
        return weights.get("rotated") == 1.0
    return point == "finetune" and len({w for w in weights.values() if w > 0}) > 1


def killed_finetune(model: Any, tasks: Any, weights: Any, settings: Any, **options: Any) -> Any:
    on_rung = options.pop("on_rung")

    def killing(step: int, evaluations: Any) -> None:
        on_rung(step, evaluations)
        if is_the_point(weights):
            kill()

    return finetune(model, tasks, weights, settings, on_rung=killing, **options)


def killed_load(self: Previewer, weights: Any) -> None:
    load(self, weights)
    if point == "preview" and trial_number == 2:
        kill()


def noted_preview(self: Objective, trial: Any, *arguments: Any) -> None:
    global trial_number
    trial_number = trial.number
    preview(self, trial, *arguments)


def killed_report(*arguments: Any, **options: Any) -> Any:
    if point == "report":
        kill()
    return make_report(*arguments, **options)


_store.finetune = killed_finetune
optuna_merge.reports.make_report = killed_report
Previewer.load = killed_load  # type: ignore[method-assign]
Objective._preview = noted_preview  # type: ignore[method-assign]
sys.argv = [script, *flags]
runpy.run_path(script, run_name="__main__")
