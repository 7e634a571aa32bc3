"""The one module that uses Optuna's private names.

Optuna has no public way to write an attribute of a trial that another call runs, to re-read one
trial, or to tell a storage that a transaction only reads. What is needed of that stands here, so
that a new version of Optuna is checked in one place.
"""

from __future__ import annotations

import copy
import datetime
import functools
import time
import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from optuna.artifacts._protocol import ArtifactStore as ArtifactStore
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.samplers import PartialFixedSampler
from optuna.storages import RDBStorage, fail_stale_trials as optuna_fail_stale_trials
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.study import Study, create_study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.orm import Session

from optuna_merge.trials._tries import MAX_RETRY, end_attempt

T = TypeVar("T")


def set_trial_user_attr(study: Study, trial: FrozenTrial | int, key: str, value: Any) -> None:
    """Write a user attribute of an unfinished trial, given by its number or as a trial.

    Raises:
        optuna.exceptions.UpdateFinishedTrialError: another process may have failed the trial.
    """
    study._storage.set_trial_user_attr(_trial_id(study, trial), key, value)
    if isinstance(trial, FrozenTrial):
        trial.user_attrs[key] = value


def set_user_attrs(trial: Trial, attrs: Mapping[str, Any]) -> None:
    """`trial.set_user_attr` for several; one transaction in storages of `create_storage`."""
    backend = getattr(trial.study._storage, "_backend", None)
    if not isinstance(backend, RequeuingStorage):
        for key, value in attrs.items():
            trial.set_user_attr(key, value)
        return
    backend.set_trial_user_attrs(trial._trial_id, attrs)
    trial._cached_frozen_trial.user_attrs.update(attrs)


def is_running(study: Study, trial: FrozenTrial | int) -> bool:
    """Whether the storage says, now, that the trial is RUNNING: the fence of a stalled worker.

    A worker that stood still for longer than the grace period finds its trial failed, and a clone
    of it queued or running elsewhere; it must write nothing more for it.
    """
    # Only finished trials are ever answered from Optuna's cache, so this is a fresh read.
    state = study._storage.get_trial(_trial_id(study, trial)).state
    return state == TrialState.RUNNING


def fail_and_requeue(
    study: Study,
    trial: FrozenTrial | int,
    reason: str = "its worker died",
    *,
    counted: bool = True,
    max_retry: int = MAX_RETRY,
) -> bool:
    """Fail a RUNNING trial, and queue a clone that tries again unless it is given up.

    In the storages of `create_storage`, but for the journal and memory, both are one transaction.
    Of several processes that call this for one trial a single one queues the clone.

    Args:
        study: The trial's study.
        trial: The trial or its number.
        reason: Why it failed; see `end_attempt` for what is written.
        counted: Whether the try counts.
        max_retry: How often a trial is retried, where the storage does not say it itself.

    Returns:
        Whether this call failed the trial; False when it was not RUNNING (any more).
    """
    storage = study._storage
    trial_id = _trial_id(study, trial)
    backend = getattr(storage, "_backend", storage)
    if isinstance(backend, RequeuingStorage):
        return backend.fail_and_requeue(trial_id, reason, counted=counted)
    found = storage.get_trial(trial_id)
    if found.state != TrialState.RUNNING:
        return False
    callback = None
    if isinstance(storage, BaseHeartbeat):
        callback = storage.get_heartbeat_stale_trial_callback()
    ended = end_attempt(found, reason, counted=counted, max_retry=max_retry)
    try:
        for key, value in ended.attrs.items() if callback is None else ():
            storage.set_trial_user_attr(trial_id, key, value)
        if not storage.set_trial_state_values(trial_id, state=TrialState.FAIL):
            return False
    except UpdateFinishedTrialError:
        return False
    if callback is not None:
        # It appends to the trial's list in place: never give it the storage's own object.
        callback(study, copy.deepcopy(storage.get_trial(trial_id)))
    elif ended.clone is not None:
        study.add_trial(ended.clone)
    return True


def fixed_params(study: Study) -> dict[str, Any]:
    """Parameters that the study's `PartialFixedSampler` holds; {}: it has another sampler."""
    sampler = study.sampler
    return dict(sampler._fixed_params) if isinstance(sampler, PartialFixedSampler) else {}


def companion_study(study: Study, name: str) -> Study:
    """A study of this name in the storage of another one; made if it is missing."""
    return create_study(study_name=name, storage=study._storage, load_if_exists=True)


def claim_waiting(study: Study, wanted: Callable[[FrozenTrial], bool]) -> int | None:
    """Make the first WAITING trial that is `wanted` this worker's; its number, or None."""
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
    """`study.optimize` of the one trial that `claim_waiting` gave; with None a new one is made."""
    trial_id = None if number is None else _trial_id(study, number)
    view = copy.copy(study)  # shares everything but the thread-local cache of trials
    view._pop_waiting_trial_id = lambda: trial_id  # type: ignore[method-assign]
    view.optimize(objective, n_trials=1)


def fail_stale_trials(study: Study) -> None:
    """Optuna's, without its warning: fail and queue again what has had no heartbeat for long."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        optuna_fail_stale_trials(study)


def cached_trials(study: Study) -> list[FrozenTrial]:
    """All trials, of this thread's cache while it samples; copies of those that run."""
    trials = study._get_trials(deepcopy=False, use_cache=True)
    return [_still(trial) if trial.state == TrialState.RUNNING else trial for trial in trials]


def _still(trial: FrozenTrial) -> FrozenTrial:
    copied = copy.copy(trial)
    copied.params = dict(trial.params)  # each is written after its distribution
    copied.distributions = {name: trial.distributions[name] for name in copied.params}
    return copied


def known_params(trial: FrozenTrial) -> dict[str, Any]:
    """The trial's parameters, those that an enqueued one is going to get included."""
    fixed: dict[str, Any] = trial.system_attrs.get("fixed_params", {})  # by `enqueue_trial`
    return fixed | trial.params


def can_be_copied(trial: FrozenTrial) -> bool:
    """Whether no parameter is out of its range, as enqueued ones may be: Optuna takes no copy."""
    return all(
        trial.distributions[name]._contains(trial.distributions[name].to_internal_repr(value))
        for name, value in tuple(trial.params.items())  # in memory a thread may be writing more
    )


class RetriedStorage(RDBStorage):
    """`RDBStorage` all of whose transactions go through `persist`, which may do them again.

    Doing one again is safe though the answer to its commit was lost. A trial may be made twice;
    then one is RUNNING without a worker until its heartbeat is missed, or is a copy, which others
    find.
    """

    def persist(self, transaction: Callable[[], T]) -> T:
        """Do the transaction; for subclasses to do it again where it failed."""
        return transaction()

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        begun = False

        def transaction() -> bool:
            nonlocal begun
            again, begun = begun, True
            try:
                return RDBStorage.set_trial_state_values(self, trial_id, state, values)
            except UpdateFinishedTrialError:
                # Only its own worker completes or prunes a trial: the first commit was done.
                own = state in (TrialState.COMPLETE, TrialState.PRUNED)
                if again and own and RDBStorage.get_trial(self, trial_id).state == state:
                    return True
                raise

        return self.persist(transaction)


def _persisted(name: str) -> Any:
    method = getattr(RDBStorage, name)

    @functools.wraps(method)
    def persisted(self: RetriedStorage, *args: Any, **kwargs: Any) -> Any:
        return self.persist(lambda: method(self, *args, **kwargs))

    return persisted


for _name in (
    "create_new_study",
    "delete_study",
    "set_study_user_attr",
    "set_study_system_attr",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "_create_new_trial",
    "_set_trial_param",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "get_trial_id_from_study_id_trial_number",
    "get_trial_param",
    "get_trial",
    "_get_trials",
    "_get_best_trial_id",
    "_get_stale_trial_ids",
):
    setattr(RetriedStorage, _name, _persisted(_name))


class RequeuingStorage(RetriedStorage):
    """`RDBStorage` whose trials have a heartbeat from the moment that they run, and are not lost.

    Optuna writes the first heartbeat only when the objective begins: a worker that is killed
    before leaves a trial RUNNING for ever. And Optuna fails a dead trial and queues its clone in
    two transactions; here they are one.
    """

    max_retry: int = MAX_RETRY
    """How often a trial whose worker died is tried again."""
    unreachable_at: float | None = None
    """When the database did not answer last, by `time.monotonic`; None: it always did."""

    def fail_and_requeue(self, trial_id: int, reason: str, *, counted: bool = True) -> bool:
        """See the function of this name."""

        def transaction() -> bool:
            with _create_scoped_session(self.scoped_session) as session:
                trial = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
                if trial.state != TrialState.RUNNING:
                    return False
                study_id: Any = trial.study_id
                # Trials' numbers are given out under this lock.
                models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
                found = self._build_frozen_trial_from_trial_model(trial)
                ended = end_attempt(found, reason, counted=counted, max_retry=self.max_retry)
                for key, value in ended.attrs.items():
                    self._set_trial_attr_without_commit(
                        session, models.TrialUserAttributeModel, trial_id, key, value
                    )
                trial.state = TrialState.FAIL
                trial.datetime_complete = datetime.datetime.now()
                if ended.clone is not None:
                    self._get_prepared_new_trial(study_id, ended.clone, session)
            return True

        return self.persist(transaction)

    def set_trial_user_attrs(self, trial_id: int, attrs: Mapping[str, Any]) -> None:
        """Write several user attributes of a trial, all or none."""

        def transaction() -> None:
            with _create_scoped_session(self.scoped_session) as session:
                for key, value in attrs.items():
                    self._set_trial_attr_without_commit(
                        session, models.TrialUserAttributeModel, trial_id, key, value
                    )

        self.persist(transaction)

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        """Fail and requeue the stale trials, so that none are left for Optuna to fail."""
        assert self.heartbeat_interval is not None
        since = self.unreachable_at
        if since is not None and time.monotonic() - since < 2 * self.heartbeat_interval:
            return []  # the database was away: others could give no signs of life either
        for trial_id in super()._get_stale_trial_ids(study_id):
            grace = self.grace_period or 2 * self.heartbeat_interval
            self.fail_and_requeue(trial_id, f"its worker gave no sign of life for {grace} s")
        return []

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        if state == TrialState.RUNNING and self.heartbeat_interval is not None:
            # Before it runs; while it waits it does no harm.
            self.persist(lambda: RDBStorage.record_heartbeat(self, trial_id))
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


class ReadMarkingStorage(RetriedStorage):
    """`RDBStorage` that says, by `only_reading()`, when a transaction reads trials only."""

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


class TrialHandle:
    """What `optuna_dashboard.save_note` and `get_note` need of a trial, also of one that ended."""

    def __init__(self, study: Study, number: int) -> None:
        self.study = study
        self.storage = study._storage
        self._trial_id = _trial_id(study, number)


def reported_steps(trial: Trial) -> frozenset[int]:
    """Steps for which the trial has intermediate values, those inherited by a clone included."""
    return frozenset(trial._cached_frozen_trial.intermediate_values)


def latest_view(trial: Trial) -> FrozenTrial:
    """What `Trial.should_prune` gives to a pruner: the trial as its storage has it now."""
    return trial._get_latest_trial()
