"""What a worker does: preview, finetune, or both. Where GPUs are dear, CPUs preview for them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, get_args

import optuna
from optuna.trial import FrozenTrial, TrialState

from optuna_merge.pruners import PromotionPruner
from optuna_merge.trials import (
    BASELINE,
    PREVIEW_RUN,
    PROMOTED_FROM,
    PROMOTION,
    claim_waiting,
    fail_stale_trials,
    optimize_claimed,
)

_logger = logging.getLogger(__name__)

Role = Literal["any", "preview", "finetune"]
"""What a worker does.

"any": whatever comes. "preview": previews only; others finetune. "finetune":
baselines and what is promoted; it waits for them and samples nothing.
"""

Optimize = Callable[[Callable[[optuna.Trial], float | Sequence[float]]], None]
"""Runs one trial with an objective, as `study.optimize` does."""

_OPEN, _ENDED = "open", "ended"


def check_role(role: str) -> Role:
    """Return the role, if there is one of this name.

    Raises:
        ValueError: there is no role of this name.
    """
    for known in get_args(Role):
        if role == known:
            return role  # type: ignore[return-value]
    raise ValueError(f"role is {role!r}, expected one of: {', '.join(get_args(Role))}")


def is_finetune_work(trial: FrozenTrial) -> bool:
    """Whether the trial is one to finetune: promoted, or a baseline."""
    return is_promoted(trial) or BASELINE in trial.user_attrs


def is_promoted(trial: FrozenTrial) -> bool:
    """Whether the trial was promoted: a copy to finetune because of its preview."""
    if BASELINE in trial.user_attrs:
        return False
    attrs = trial.user_attrs
    queued = PROMOTED_FROM in attrs or PROMOTION in attrs
    return queued or max(trial.intermediate_values, default=0) > 0


def next_trial(study: optuna.Study, role: Role) -> Optimize | None:
    """Claim the next trial for a worker of this role; None: there is nothing to finetune now."""
    if role == "any":
        return partial(study.optimize, n_trials=1)
    fail_stale_trials(study)
    if role == "finetune":
        number = claim_waiting(study, is_finetune_work)
        return None if number is None else partial(optimize_claimed, study, number=number)
    number = claim_waiting(study, lambda trial: not is_finetune_work(trial))
    return partial(optimize_claimed, study, number=number)


def announce(study: optuna.Study, run: str) -> None:
    """Say in the study that this run previews, so that finetuning workers wait for it."""
    study.set_user_attr(PREVIEW_RUN.format(run=run), _OPEN)


def sign_off(study: optuna.Study, run: str) -> None:
    """Say in the study that this run has made its previews."""
    study.set_user_attr(PREVIEW_RUN.format(run=run), _ENDED)


class Watch:
    """When a finetuning worker may go: nothing is left to finetune, and nothing more will come.

    Nothing more will come once the caps on promotions are reached, or when nothing has changed in
    the study for `patience` seconds; for a tenth of that, where all previewing runs have ended.
    """

    def __init__(self, study: optuna.Study, patience: float) -> None:
        self._study = study
        self._patience = patience
        self._seen: list[TrialState] = []
        self._changed = time.monotonic()
        self._told = False

    def is_over(self) -> bool:
        """Whether the worker may go; ask while there is nothing to claim."""
        # Before the trials: who has ended by now has queued what it promoted.
        attrs = self._study.user_attrs
        prefix = PREVIEW_RUN.format(run="")
        runs = [value for key, value in attrs.items() if key.startswith(prefix)]
        trials = self._study.get_trials(deepcopy=False)
        states = [trial.state for trial in trials]
        if states != self._seen:
            self._seen, self._changed = states, time.monotonic()
        if any(is_finetune_work(t) for t in trials if not t.state.is_finished()):
            return False
        pruner = self._study.pruner
        if isinstance(pruner, PromotionPruner) and pruner.is_spent(self._study):
            return True
        if not self._told:
            _logger.info("waiting for previews that are promoted")
            self._told = True
        running = TrialState.RUNNING in states  # its preview may be promoted, unless it is dead
        share = 0.1 if runs and _OPEN not in runs and not running else 1.0
        return time.monotonic() - self._changed >= share * self._patience
