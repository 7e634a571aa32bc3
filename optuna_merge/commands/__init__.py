"""What the command line does: one file a command, and what all commands share."""

from optuna_merge.commands._command import command
from optuna_merge.commands._definition import load_definition
from optuna_merge.commands._diagnose import diagnose
from optuna_merge.commands._errors import guarded
from optuna_merge.commands._export import export
from optuna_merge.commands._fit import fit
from optuna_merge.commands._flags import Debug, Definition
from optuna_merge.commands._gc import gc
from optuna_merge.commands._init import init
from optuna_merge.commands._optimize import optimize, script
from optuna_merge.commands._replay import replay
from optuna_merge.commands._report import report

__all__ = ["COMMANDS", "Debug", "Definition", "command", "guarded", "load_definition", "script"]

_REPLAY = {"study_name": "replay", "n_trials": 30, "max_promotions": 6}  # enough for two tasks
COMMANDS = [
    *(command(work) for work in (init, fit, optimize)),
    command(replay, **_REPLAY),
    *(command(work) for work in (report, diagnose, export, gc)),
]
