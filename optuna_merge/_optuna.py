"""The one module that uses Optuna's private names.

Optuna has no public way to write an attribute of a trial that another call runs, to re-read one
trial, or to tell a storage that a transaction only reads. What is needed of that stands here, so
that a new version of Optuna is checked in one place.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.pruners import BasePruner
from optuna.storages import BaseStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages import fail_stale_trials as optuna_fail_stale_trials
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages._rdb import models
from optuna.study import Study, create_study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.orm import Session

PROMOTED_FROM = "promoted_from"
"""Of a promoted copy: the number of the trial that it was copied from."""
PROMOTED_AT = "promoted_at"
"""Of a promoted copy: the step that its trial had come to; without it, 0."""
RUN = "run"
"""User attribute of a trial: the run of `run_trials` that works on it."""
_RETRY_HISTORY = "retry_history"  # written by RetryHeartbeatStaleTrialCallback

StaleTrialCallback = Callable[[Study, FrozenTrial], None]


def set_trial_user_attr(study: Study, trial: FrozenTrial | int, key: str, value: Any) -> None:
    """Write a user attribute of an unfinished trial, given as a trial or by its number.

    A `FrozenTrial` shows the value at once, and so does the `optuna.Trial` that it is a view of
    (`Trial.set_user_attr` does the same); the study's storage is written first.

    Raises:
        KeyError: the study has no trial of that number.
        optuna.exceptions.UpdateFinishedTrialError: the trial has finished; another process may
            have failed it because its heartbeat stopped.
    """
    study._storage.set_trial_user_attr(_trial_id(study, trial), key, value)
    if isinstance(trial, FrozenTrial):
        trial.user_attrs[key] = value


def is_running(study: Study, trial: FrozenTrial | int) -> bool:
    """Whether the storage says, now, that the trial is RUNNING: the fence of a stalled worker.

    A worker that stood still for longer than the grace period finds its trial failed, and a clone
    of it queued or running elsewhere; it must write nothing more for it.
    """
    # Only finished trials are ever answered from Optuna's cache, so this is a fresh read.
    state = study._storage.get_trial(_trial_id(study, trial)).state
    return state == TrialState.RUNNING


def fail_and_requeue(study: Study, trial: FrozenTrial | int, *, max_retry: int = 3) -> bool:
    """Fail the RUNNING trial of a worker known to be dead, and queue a clone that retries it.

    What the heartbeat does after the grace period, at once, and also for storages without a
    heartbeat. The clone has the parameters, attributes and intermediate values of the trial and
    Optuna's `failed_trial` and `retry_history`. Storages change a state once only, so of several
    processes that call this for one trial a single one queues the clone.

    Args:
        study: The trial's study.
        trial: The trial or its number.
        max_retry: How often a trial is retried, where the storage has no callback of its own
            (`create_storage` gives its storages one).

    Returns:
        Whether this call failed the trial; False when it was not RUNNING (any more).
    """
    storage = study._storage
    trial_id = _trial_id(study, trial)
    if storage.get_trial(trial_id).state != TrialState.RUNNING:
        return False
    try:
        if not storage.set_trial_state_values(trial_id, state=TrialState.FAIL):
            return False
    except UpdateFinishedTrialError:
        return False
    callback = None
    if isinstance(storage, BaseHeartbeat):
        callback = storage.get_heartbeat_stale_trial_callback()
    # The callback appends to the trial's list in place: never give it the storage's own object.
    failed = copy.deepcopy(storage.get_trial(trial_id))
    (callback or retry_callback(max_retry))(study, failed)
    return True


def companion_study(study: Study, name: str) -> Study:
    """A study of this name in the storage of another one; made if it is missing."""
    return create_study(study_name=name, storage=study._storage, load_if_exists=True)


def claim_waiting(study: Study, wanted: Callable[[FrozenTrial], bool]) -> int | None:
    """Make the first WAITING trial that is `wanted` this worker's, RUNNING; return its number.

    What `Study.ask` does with any WAITING trial. None where there is none; of several workers that
    claim one trial a single one gets it.
    """
    storage = study._storage
    for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        if not wanted(trial):
            continue
        try:
            if storage.set_trial_state_values(trial._trial_id, state=TrialState.RUNNING):
                return trial.number
        except UpdateFinishedTrialError:
            continue
    return None


def optimize_claimed(
    study: Study, objective: Callable[[Trial], float | Sequence[float]], number: int | None
) -> None:
    """`study.optimize(objective, n_trials=1)` of a trial that `claim_waiting` gave.

    With None a new trial is made, whatever is WAITING.
    """
    trial_id = None if number is None else _trial_id(study, number)
    view = copy.copy(study)  # shares everything but the thread-local cache of trials
    view._pop_waiting_trial_id = lambda: trial_id  # type: ignore[method-assign]
    view.optimize(objective, n_trials=1)


def fail_stale_trials(study: Study) -> None:
    """Optuna's, without its warning: fail and queue again what has had no heartbeat for long."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        optuna_fail_stale_trials(study)


def retry_callback(max_retry: int) -> StaleTrialCallback:
    """Optuna's retry of stale trials, with their intermediate values (the preview is kept)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return _Retry(max_retry, inherit_intermediate_values=True)


class _Retry(RetryHeartbeatStaleTrialCallback):
    """The clone is not of the dead worker's run: whoever claims it has not said of which yet."""

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        trial.user_attrs.pop(RUN, None)
        super().__call__(study, trial)


def lineage_root(trial: FrozenTrial) -> int:
    """Number of the trial that `trial` goes on from: what a finetune's checkpoints are named by.

    A promoted copy goes on from the trial it was promoted from, a retry clone from the first trial
    of its history (a clone of a promoted copy keeps the copy's root), any other from itself.
    """
    promoted_from = trial.user_attrs.get(PROMOTED_FROM)
    if promoted_from is not None:
        return int(promoted_from)
    return first_attempt(trial)


def first_attempt(trial: FrozenTrial) -> int:
    """Number of the first trial of a chain of retry clones, or the trial's own number."""
    history = retry_history(trial)
    return history[0] if history else trial.number


def known_params(trial: FrozenTrial) -> dict[str, Any]:
    """The trial's parameters, those that an enqueued one is going to get included."""
    fixed: dict[str, Any] = trial.system_attrs.get("fixed_params", {})  # by `enqueue_trial`
    return fixed | trial.params


def retry_history(trial: FrozenTrial) -> list[int]:
    """Numbers of the failed attempts that a retry clone goes on from, the first one in front."""
    history: list[int] = trial.system_attrs.get(_RETRY_HISTORY, [])
    return history


def study_view(
    study: Study, pruner: BasePruner, keep: Callable[[FrozenTrial], FrozenTrial | None]
) -> Study:
    """A study whose reads show only what `keep` returns of each trial (None leaves it out).

    Writes reach the real storage. For pruners that must look at a part of the history; `pruner`
    is the view's own pruner, which Optuna's HyperbandPruner looks up there.
    """
    view = copy.copy(study)  # shares everything but the thread-local cache of trials
    view._storage = _StorageView(study._storage, keep)  # type: ignore[assignment]
    view.pruner = pruner
    return view


class _StorageView:
    """A storage seen through `keep`; all that is not about reading trials is passed on."""

    def __init__(
        self, storage: BaseStorage, keep: Callable[[FrozenTrial], FrozenTrial | None]
    ) -> None:
        self._storage = storage
        self._keep = keep

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        trials = self._storage.get_all_trials(study_id, deepcopy=False, states=states)
        kept = [seen for trial in trials if (seen := self._keep(trial)) is not None]
        return copy.deepcopy(kept) if deepcopy else kept

    def get_trial(self, trial_id: int) -> FrozenTrial:
        trial = self._storage.get_trial(trial_id)
        return self._keep(trial) or trial

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        trial = self._storage.get_best_trial(study_id)
        return self._keep(trial) or trial


class HeartbeatFromStart(RDBStorage):
    """`RDBStorage` whose trials have a heartbeat from the moment that they run.

    Optuna takes no trial for dead that never had one, and writes the first only when the objective
    is about to begin: a worker that is killed before leaves a trial that stays RUNNING for ever.
    """

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        if state == TrialState.RUNNING and self.heartbeat_interval is not None:
            self.record_heartbeat(trial_id)  # before it runs; while it waits it does no harm
        return super().set_trial_state_values(trial_id, state, values)

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: Session
    ) -> models.TrialModel:
        trial = super()._get_prepared_new_trial(study_id, template_trial, session)
        if template_trial is None and self.heartbeat_interval is not None:
            session.add(models.TrialHeartbeatModel(trial_id=trial.trial_id))  # one transaction
        return trial


_only_reading: ContextVar[bool] = ContextVar("_only_reading", default=False)


def only_reading() -> bool:
    """Whether the current transaction, of a `ReadMarkingStorage`, only reads trials."""
    return _only_reading.get()


class ReadMarkingStorage(RDBStorage):
    """`RDBStorage` that says, by `only_reading()`, when a transaction reads trials only.

    So that a database whose transactions lock when they begin need not lock for long reads.
    """

    def get_trial(self, trial_id: int) -> FrozenTrial:
        with _marked_as_reading():
            return super().get_trial(trial_id)

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        with _marked_as_reading():
            return super()._get_trials(study_id, states, included_trial_ids, trial_id_greater_than)


@contextmanager
def _marked_as_reading() -> Iterator[None]:
    token = _only_reading.set(True)
    try:
        yield
    finally:
        _only_reading.reset(token)


def _trial_id(study: Study, trial: FrozenTrial | int) -> int:
    if isinstance(trial, FrozenTrial):
        return trial._trial_id
    return study._storage.get_trial_id_from_study_id_trial_number(study._study_id, trial)


def reported_steps(trial: Trial) -> frozenset[int]:
    """Steps for which the trial has intermediate values, those inherited by a clone included."""
    return frozenset(trial._cached_frozen_trial.intermediate_values)


def latest_view(trial: Trial) -> FrozenTrial:
    """What `Trial.should_prune` gives to a pruner: the trial as its storage has it now."""
    return trial._get_latest_trial()
