"""What the command line does: one file a command, and what all commands share."""

from optuna_merge.commands._definition import load_definition
from optuna_merge.commands._errors import guarded

__all__ = ["guarded", "load_definition"]
