"""Which trials are one weighting: a preview, its promoted copy, and the retries of both.

The lineage's number is that of its first trial.
"""

from __future__ import annotations

from optuna.trial import FrozenTrial

from optuna_merge.trials._attributes import PROMOTED_FROM

RETRY_HISTORY = "retry_history"
"""System attribute of Optuna's retry clones: the failed trials before it, the first in front."""


def lineage(trial: FrozenTrial) -> int:
    """Number of the first trial of the weighting that `trial` goes on from, or its own.

    A promoted copy and its retries hold that number, so no other trial need be read.
    """
    source = trial.user_attrs.get(PROMOTED_FROM)
    if source is not None:
        return int(source)
    history = retry_history(trial)
    return history[0] if history else trial.number


def retry_history(trial: FrozenTrial) -> list[int]:
    """Numbers of the failed attempts that a retry clone goes on from, the first one in front."""
    history: list[int] = trial.system_attrs.get(RETRY_HISTORY, [])
    return history
