"""What the command line does: one file a command, and what all commands share."""

from optuna_merge.commands._definition import load_definition
from optuna_merge.commands._errors import guarded
from optuna_merge.commands._flags import Debug, Definition

__all__ = ["Debug", "Definition", "guarded", "load_definition"]
