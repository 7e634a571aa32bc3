"""The database goes away and comes back: transactions wait, nothing is done twice or by halves."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import psycopg
import pymysql
import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from optuna_merge.exceptions import StorageUnavailableError
from optuna_merge.storages import create_storage
from optuna_merge.storages._trouble import Trouble, passing_trouble
from optuna_merge.trials import RequeuingStorage, fail_and_requeue


def dbapi_error(error: Exception, *, lost: bool = False) -> sqlalchemy.exc.DBAPIError:
    kind = getattr(sqlalchemy.exc, type(error).__name__, sqlalchemy.exc.OperationalError)
    found: sqlalchemy.exc.DBAPIError = kind("SELECT 1", {}, error, connection_invalidated=lost)
    return found


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (psycopg.OperationalError("connection refused"), Trouble.AWAY),
        (psycopg.errors.AdminShutdown(), Trouble.AWAY),
        (psycopg.errors.CannotConnectNow(), Trouble.AWAY),
        (psycopg.errors.DeadlockDetected(), Trouble.BUSY),
        (psycopg.errors.TooManyConnections(), Trouble.BUSY),
        (psycopg.errors.DiskFull(), Trouble.BUSY),
        (psycopg.errors.InsufficientPrivilege(), None),
        (psycopg.errors.UndefinedTable(), None),
        (pymysql.err.OperationalError(2003, "can't connect"), Trouble.AWAY),
        (pymysql.err.OperationalError(2013, "lost connection"), Trouble.AWAY),
        (pymysql.err.InterfaceError(0, ""), Trouble.AWAY),
        (pymysql.err.OperationalError(1213, "deadlock"), Trouble.BUSY),
        (pymysql.err.OperationalError(1142, "denied"), None),
        (pymysql.err.DataError(1406, "too long"), None),
        (sqlite3.OperationalError("database is locked"), Trouble.BUSY),
        (sqlite3.OperationalError("database or disk is full"), Trouble.BUSY),
        (sqlite3.OperationalError("no such table: trials"), None),
    ],
)
def test_which_errors_pass(error: Exception, trouble: Trouble | None) -> None:
    found = dbapi_error(error)
    assert passing_trouble(found) == trouble
    optunas = StorageInternalError("an exception is raised")
    optunas.__cause__ = found
    assert passing_trouble(optunas) == trouble
    assert passing_trouble(dbapi_error(error, lost=True)) == Trouble.AWAY


def test_other_errors_do_not_pass() -> None:
    assert passing_trouble(sqlalchemy.exc.TimeoutError()) == Trouble.BUSY
    assert passing_trouble(sqlalchemy.exc.ArgumentError()) is None
    assert passing_trouble(StorageInternalError("without a cause")) is None


@pytest.mark.parametrize("crash", [False, True])
def test_a_restart_is_a_pause(postgres_server: Any, crash: bool) -> None:
    storage = create_storage(postgres_server.url)
    assert isinstance(storage, RequeuingStorage)
    study = optuna.create_study(study_name="s", storage=storage)
    study.ask()
    restarted = threading.Event()

    def restart() -> None:
        postgres_server.restart(seconds_away=1.0, crash=crash)
        restarted.set()

    def objective(trial: optuna.Trial) -> float:
        threading.Thread(target=restart).start()
        time.sleep(0.3)
        value = trial.suggest_float("x", 0, 1)  # while the server is away
        trial.report(value, 0)
        trial.set_user_attr("a", 1)
        return value

    study.optimize(objective, n_trials=1)
    assert restarted.wait(30)
    trials = study.trials
    assert [t.state for t in trials] == [TrialState.RUNNING, TrialState.COMPLETE]
    assert trials[1].user_attrs == {"a": 1}
    assert trials[1].intermediate_values == {0: trials[1].value}
    # The other trial's worker gave no sign of life meanwhile, and could not.
    with storage.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE trial_heartbeats SET heartbeat = now() - interval '1 day'"
        )
    optuna.storages.fail_stale_trials(study)
    assert study.trials[0].state == TrialState.RUNNING
    storage.unreachable_at = None  # as some minutes later
    optuna.storages.fail_stale_trials(study)
    assert study.trials[0].state == TrialState.FAIL


def test_patience_ends(postgres_server: Any) -> None:
    url = postgres_server.url
    storage = create_storage(url, patience=0.5)
    study = optuna.create_study(storage=storage)
    postgres_server.stop()
    with pytest.raises(StorageUnavailableError, match=r"away for 0\.5 s") as caught:
        study.set_user_attr("a", 1)
    assert caught.value.__cause__ is caught.value.__context__ is None
    # What a worker does as it ends does not wait as long again.
    with pytest.raises(StorageUnavailableError):
        study.set_user_attr("a", 1)
    postgres_server.start()
    study.set_user_attr("a", 1)
    assert study.user_attrs == {"a": 1}


class LostAnswer:
    """A transaction is committed, and the connection breaks before the answer comes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        method = getattr(RDBStorage, name)
        self.calls = 0

        def call(*arguments: Any, **more: Any) -> Any:
            self.calls += 1
            result = method(*arguments, **more)
            if self.calls == 1:
                raise dbapi_error(psycopg.OperationalError("lost"), lost=True)
            return result

        monkeypatch.setattr(RDBStorage, name, call)


def test_a_trial_that_was_completed_unheard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = optuna.create_study(storage=create_storage(f"sqlite:///{tmp_path}/study.db"))
    trial = study.ask()
    lost = LostAnswer(monkeypatch, "set_trial_state_values")
    study.tell(trial, 1.0)
    assert lost.calls == 2
    assert study.trials[0].value == 1.0


def test_failing_and_queueing_again_are_one_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that dies between them leaves the trial RUNNING, for the next one to find."""
    study = optuna.create_study(storage=create_storage(f"sqlite:///{tmp_path}/study.db"))
    study.ask()

    def die(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RequeuingStorage, "_get_prepared_new_trial", die)
        with pytest.raises(KeyboardInterrupt):
            fail_and_requeue(study, 0)
    (trial,) = study.trials
    assert (trial.state, trial.user_attrs) == (TrialState.RUNNING, {})
    assert fail_and_requeue(study, 0)
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.WAITING]
