"""How often a weighting is tried: what becomes of a trial whose worker died or failed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from optuna_merge.trials._attributes import FAILURE, GIVEN_UP, HANDED_BACK, RUN, TRIES
from optuna_merge.trials._lineage import RETRY_HISTORY, retry_history

MAX_RETRY = 2

_OF_ONE_ATTEMPT = (RUN, FAILURE, GIVEN_UP, HANDED_BACK)


@dataclass(frozen=True)
class Ended:
    """Attributes of the failed trial, and the trial that tries again; None: given up."""

    attrs: dict[str, Any]
    clone: FrozenTrial | None


def end_attempt(trial: FrozenTrial, reason: str, *, counted: bool, max_retry: int) -> Ended:
    """End an attempt at a trial's weighting; a pure function of the trial.

    The clone has the parameters, attributes and intermediate values of the trial and Optuna's
    `failed_trial` and `retry_history`. Tries are counted along the lineage, unless the trial had
    no part in it. A trial whose parameters no trial may be made of is given up at once.
    """
    tries = int(trial.user_attrs.get(TRIES, 0)) + counted
    attrs: dict[str, Any] = {FAILURE: reason}
    attrs |= {TRIES: tries} if counted else {HANDED_BACK: True}
    if counted and tries > max_retry:
        return Ended({**attrs, GIVEN_UP: True}, None)
    kept = {k: value for k, value in trial.user_attrs.items() if k not in _OF_ONE_ATTEMPT}
    system_attrs: dict[str, Any] = {"failed_trial": trial.number, **trial.system_attrs}
    system_attrs[RETRY_HISTORY] = [*retry_history(trial), trial.number]
    try:
        clone = create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=kept | ({TRIES: tries} if tries else {}),
            system_attrs=system_attrs,
            intermediate_values=trial.intermediate_values,
        )
    except ValueError as error:  # a value out of its range, which Optuna takes once, enqueued
        attrs[FAILURE] = f"{reason}; it can't be queued again: {error}"
        return Ended({**attrs, GIVEN_UP: True}, None)
    return Ended(attrs, clone)
