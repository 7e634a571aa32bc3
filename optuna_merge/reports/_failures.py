"""Weightings that were given up."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.trial import TrialState

from optuna_merge.trials import (
    FAILURE,
    TRIES,
    baseline_of,
    retry_history,
    task_names,
    trial_weights,
)


def failures(study: optuna.Study) -> list[dict[str, Any]]:
    """Weightings that have no truth and get none: failed for good, and not as superfluous ones."""
    trials = study.get_trials(deepcopy=False)
    names = task_names(study, trials)
    retried = {number for trial in trials for number in retry_history(trial)}
    alive = {baseline_of(t) for t in trials if t.state != TrialState.FAIL}
    last = {}
    for trial in trials:
        baseline = baseline_of(trial)
        if (
            trial.state == TrialState.FAIL
            and TRIES in trial.user_attrs
            and trial.number not in retried
            and (baseline is None or baseline not in alive)
        ):
            last[baseline or trial.number] = trial
    return [
        {
            "trial": trial.number,
            "baseline": baseline_of(trial),
            "weights": trial_weights(trial.params, names),
            "tries": trial.user_attrs[TRIES],
            "reason": trial.user_attrs.get(FAILURE, "unknown"),
        }
        for trial in last.values()
    ]
