"""Optuna's `RDBStorage`, hardened: heartbeats that go on, SQLite that several processes share."""

from __future__ import annotations

import logging
import time
from typing import Any

import sqlalchemy
from optuna.exceptions import StorageInternalError

from optuna_merge._optuna import HeartbeatFromStart, ReadMarkingStorage, only_reading

_logger = logging.getLogger(__name__)

LOCK_TIMEOUT = 60.0
"""Seconds that a process waits for the lock of a SQLite file before it gives up."""


class SteadyHeartbeat(HeartbeatFromStart):
    """An `RDBStorage` whose heartbeat outlives an error of the database.

    Optuna's heartbeat thread ends with the first error, silently, and the trial is then taken for
    dead although it runs. Here the beat is missed, logged, and tried again an interval later.
    """

    def record_heartbeat(self, trial_id: int) -> None:
        try:
            super().record_heartbeat(trial_id)
        except StorageInternalError as error:
            # Only the kind of the error: its text may quote the connection's settings.
            reason = type(error.__cause__ or error).__name__
            _logger.warning("Missed a heartbeat (%s); trying again at the next interval.", reason)


class SQLiteStorage(SteadyHeartbeat, ReadMarkingStorage):
    """SQLite for several processes: no waiting trial is executed twice.

    Optuna reads a trial's state and then writes it. SQLite, as Python's driver opens transactions,
    locks at the write, so two processes can both read WAITING and both run the trial. Here every
    transaction that may write locks the file as it begins (`BEGIN IMMEDIATE`); reads of trials
    don't lock, which matters when thousands of trials are read for the first time. The journal
    is write-ahead (`WAL`), so that readers and the writer don't wait for each other.

    WAL needs shared memory between the processes: not for network file systems.
    """

    def __init__(self, url: str, **kwargs: Any) -> None:
        super().__init__(url, **kwargs)
        _lock_at_begin(self.engine)

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        _lock_at_begin(self.engine)


def _lock_at_begin(engine: sqlalchemy.Engine) -> None:
    sqlalchemy.event.listen(engine, "connect", _set_up_connection)
    sqlalchemy.event.listen(engine, "begin", _begin)
    engine.dispose()  # connections opened before had neither


def _set_up_connection(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not open transactions by itself
    cursor = connection.cursor()
    try:
        _enter_wal(cursor)
        # With WAL this loses at most the last commits on power failure, never consistency.
        cursor.execute("PRAGMA synchronous=NORMAL")
    finally:
        cursor.close()


def _enter_wal(cursor: Any) -> None:
    """Switch to WAL. SQLite answers "locked" here without its usual waiting, so wait for it."""
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except Exception as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def _begin(connection: sqlalchemy.Connection) -> None:
    connection.exec_driver_sql("BEGIN" if only_reading() else "BEGIN IMMEDIATE")
