"""Optuna's `RDBStorage`, hardened: outages are waited out, SQLite is shared by processes."""

from __future__ import annotations

import logging
import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from optuna_merge.exceptions import StorageUnavailableError
from optuna_merge.storages._trouble import Trouble, passing_trouble
from optuna_merge.trials import ReadMarkingStorage, RequeuingStorage, only_reading

_logger = logging.getLogger(__name__)

T = TypeVar("T")

LOCK_TIMEOUT = 60.0
"""Seconds that a process waits for the lock of a SQLite file before it gives up."""
_LONGEST_WAIT = 5.0  # seconds between two tries of a transaction
_WAL_PAGES = 64  # of 4 KB, SQLite's default is 1000
"""Pages of a SQLite file's write-ahead log from which on a commit moves them into the file."""


class SteadyStorage(RequeuingStorage):
    """An `RDBStorage` that outlives outages of the database.

    A transaction that fails since the database is away, or busy, is done again for `patience`
    seconds. A heartbeat is missed and logged then; Optuna's thread would end with the first error.
    """

    def __init__(self, url: str, *, max_retry: int, patience: float, **kwargs: Any) -> None:
        self.max_retry = max_retry
        self.patience = patience
        self._out_of_patience = False
        super().__init__(url, **kwargs)

    def persist(self, transaction: Callable[[], T]) -> T:
        """Do the transaction, again while the database is away or busy, for `patience` seconds."""
        wait, deadline = 0.1, None
        while True:
            try:
                done = transaction()
                self._out_of_patience = False
                return done
            except (StorageInternalError, SQLAlchemyError) as error:
                trouble = passing_trouble(error)
                if trouble is None:
                    raise
                reason = _kind(error)
            now = time.monotonic()
            if trouble == Trouble.AWAY:
                self.unreachable_at = now
            if deadline is None and not self._out_of_patience:
                deadline = now + self.patience
                say = _logger.warning if trouble == Trouble.AWAY else _logger.debug
                say("The database is %s (%s); trying again.", trouble.value, reason)
            elif deadline is None or now >= deadline:
                self._out_of_patience = True  # what the worker does at its end shall not wait
                # Raised out here: without a context, which may quote the connection's settings.
                raise StorageUnavailableError(
                    f"the database has been {trouble.value} for {self.patience:g} s ({reason}); "
                    f"start again when it answers, nothing is lost"
                )
            time.sleep(random.uniform(wait / 2, wait))
            wait = min(2 * wait, _LONGEST_WAIT)

    def record_heartbeat(self, trial_id: int) -> None:
        try:
            super().record_heartbeat(trial_id)
        except (StorageInternalError, SQLAlchemyError) as error:
            if passing_trouble(error) == Trouble.AWAY:
                self.unreachable_at = time.monotonic()
            _logger.warning(
                "Missed a heartbeat (%s); trying again at the next interval.", _kind(error)
            )


def _kind(error: Exception) -> str:
    """Only the kind of the error: its text may quote the connection's settings."""
    return type(error.__cause__ or error).__name__


class SQLiteStorage(SteadyStorage, ReadMarkingStorage):
    """SQLite for several processes: no waiting trial is executed twice.

    SQLite, as Python's driver opens transactions, locks at the write, so two processes can both
    read WAITING and both run the trial. Here every transaction that may write locks the file as it
    begins (`BEGIN IMMEDIATE`); reads of trials don't lock. The journal is write-ahead (`WAL`), so
    that readers and the writer don't wait for each other; not for network file systems. There is a
    checkpoint whenever a trial has ended, whenever a commit leaves 256 KB in the log, and when the
    file is opened: people copy the file alone.
    """

    def __init__(self, url: str, **kwargs: Any) -> None:
        super().__init__(url, **kwargs)
        _lock_at_begin(self.engine)
        self._checkpoint()

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        _lock_at_begin(self.engine)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        done = super().set_trial_state_values(trial_id, state, values)
        if state.is_finished():
            self._checkpoint()
        return done

    def _checkpoint(self) -> None:
        """Move the log into the file, as far as nobody reads an earlier state; waits for none."""
        try:
            connection = self.engine.raw_connection()
            try:
                connection.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            finally:
                connection.close()
        except (sqlite3.Error, SQLAlchemyError) as error:
            # The log has everything, and the next checkpoint tries again.
            _logger.debug("No checkpoint of the SQLite file: %s", error)


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
        cursor.execute(f"PRAGMA wal_autocheckpoint={_WAL_PAGES}")
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


ISOLATION = "READ COMMITTED"
"""MySQL's default shows a transaction what was there at its first read, and locks gaps."""

_COLUMNS = {
    ("trials", "datetime_start"): ("datetime", "DATETIME(6)"),
    ("trials", "datetime_complete"): ("datetime", "DATETIME(6)"),
    ("study_user_attributes", "value_json"): ("text", "LONGTEXT"),
    ("study_system_attributes", "value_json"): ("text", "LONGTEXT"),
    ("trial_user_attributes", "value_json"): ("text", "LONGTEXT"),
    ("trial_system_attributes", "value_json"): ("text", "LONGTEXT"),
}
"""Table and column -> its type as Optuna makes it, and as it is wanted."""


class MySQLStorage(SteadyStorage):
    """MySQL or MariaDB, with attributes of any length and times to the microsecond.

    Optuna's columns hold 64 KB and round to seconds there. They are widened, once.
    """

    def __init__(self, url: str, **kwargs: Any) -> None:
        super().__init__(url, **kwargs)
        with self.engine.begin() as connection:
            found = connection.execute(
                sqlalchemy.text(
                    "SELECT table_name, column_name, column_type "
                    "FROM information_schema.columns WHERE table_schema = DATABASE()"
                )
            ).all()
            for table, column, kind in found:
                made, wanted = _COLUMNS.get((table, column), (None, None))
                if kind != made:
                    continue
                try:
                    connection.exec_driver_sql(f"ALTER TABLE {table} MODIFY {column} {wanted}")
                except sqlalchemy.exc.DBAPIError as error:  # no right to alter, say
                    _logger.warning("%s.%s stays %s: %s", table, column, kind, error.orig)
