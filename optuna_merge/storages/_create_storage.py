"""`create_storage`: one URL in, one storage out that is safe for several workers."""

from __future__ import annotations

import json
import os
import random
import re
import sqlite3
import time
import warnings
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from optuna_merge.exceptions import StorageUnavailableError
from optuna_merge.storages._rdb import (
    ISOLATION,
    LOCK_TIMEOUT,
    MySQLStorage,
    SQLiteStorage,
    SteadyStorage,
)
from optuna_merge.trials import MAX_RETRY

_FROM_ENVIRONMENT = "env:"
_CONNECT_TIMEOUT = 10  # seconds; unreachable servers shall not look like a hang

_DRIVERS = {
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mysql+pymysql",  # Optuna's upserts are for a dialect of that name only
}
"""Scheme of the URL -> scheme and driver, when the URL names none."""

_TO_INSTALL = {
    "postgresql+psycopg": "optuna-merge[postgres]",
    "mysql+pymysql": "optuna-merge[mysql]",
}
"""What brings a driver; by default the package of the driver's name."""

_EXPECTED = (
    "expected sqlite:///study.db, postgresql://user:password@host/database, "
    "mysql://user:password@host/database, journal:///study.log, or None for memory"
)


_OLDER = (
    "its tables were made by an older version of Optuna; copy it, then run, while no worker runs, "
    "`optuna storage upgrade --storage {url}`"
)
_NEWER = (
    f"its tables were made by another version of Optuna than the {optuna.__version__} installed "
    "here; install that version, or a newer one: pip install -U optuna"
)
_TO_READ = "; to read it only, run optuna-merge report without a definition"
_HELD = (
    f"which other process holds it, such as a viewer of databases with an open transaction "
    f"(it was waited for, {LOCK_TIMEOUT:g} s)"
)


def create_storage(
    url: str | None,
    *,
    heartbeat_interval: int | None = 60,
    grace_period: int = 600,
    max_retry: int = MAX_RETRY,
    patience: float = 300,
) -> BaseStorage:
    """Open a storage of studies for several processes; a missing database is created.

    | `url` | storage |
    |---|---|
    | None, `sqlite://`, `sqlite:///:memory:` | memory of this process |
    | `sqlite:///study.db`, `sqlite:////folder/study.db` | a SQLite file (relative, absolute) |
    | `postgresql://user:password@host:port/database` | PostgreSQL, by psycopg 3 |
    | `mysql://user:password@host:port/database` | MySQL or MariaDB, by PyMySQL |
    | `journal:///study.log`, `journal:////folder/study.log` | Optuna's journal file |
    | `env:NAME` | what the environment variable NAME says, one of the above |

    All users of a machine can see a password in a URL on the command line. Use `env:NAME`,
    `PGPASSWORD`, or `~/.pgpass` instead.

    SQLite files are those of a plain `optuna create-study --storage sqlite:///study.db`. This
    function locks them when a transaction begins; otherwise several processes would execute
    waiting trials twice. So all workers should open a file with this function. On network file
    systems use the journal or a server. The newest changes, at most 256 KB, are in a second file,
    `study.db-wal`, until the next trial ends: copy both files, or, while workers run, use
    `sqlite3 study.db ".backup copy.db"`.

    When a worker dies, the next worker that starts a trial notices this: the dead worker's trial
    fails, and a clone is queued, in one transaction. A trial that kills its workers again and
    again is given up (user attribute `given_up`, the reason in `failure`). While a database is
    away or busy, workers wait for it. Memory and the journal have no heartbeat, so the arguments
    below have no effect on them.

    `study.optimize` gives the signs of life. If you run trials with `study.ask` and `study.tell`,
    and a trial may take longer than `grace_period`, pass `heartbeat_interval=None`.

    Args:
        url: See above.
        heartbeat_interval: Seconds between the signs of life of a running trial; None: no signs of
            life.
        grace_period: Seconds without a sign of life after which a trial is taken for dead. They
            should be longer than any stall that you expect, because a stalled worker loses its
            trial.
        max_retry: How often a trial is tried again after it failed or its worker died.
        patience: Seconds for which a transaction is tried again while the database is away (it
            restarts, say), busy or full. Opening a storage does not wait.

    Raises:
        ValueError: the URL's scheme is unknown, or an argument is out of its range.
        ImportError: the database's driver is not installed; the message says how to install it.
        StorageUnavailableError: the database, file or folder can't be reached or written, or its
            tables are another version of Optuna's; passwords are masked.
    """
    if isinstance(url, str) and url.startswith(_FROM_ENVIRONMENT):
        url = _read_environment(url.removeprefix(_FROM_ENVIRONMENT))
    _check_heartbeat(heartbeat_interval, grace_period, max_retry)
    if not patience >= 0:  # also refuses NaN
        raise ValueError(f"patience is {patience}, expected seconds, 0 or more")
    if url is None:
        return InMemoryStorage()
    if not isinstance(url, str):
        raise TypeError(f"the storage URL is {type(url).__name__}, {_EXPECTED}")
    if url.startswith("journal:"):
        return _open_journal(url)
    location = _parse(url)
    if location.get_backend_name() == "sqlite" and location.database in (None, "", ":memory:"):
        return InMemoryStorage()

    options: dict[str, Any] = {"max_retry": max_retry, "patience": patience}
    if heartbeat_interval is not None:
        options |= {"heartbeat_interval": heartbeat_interval, "grace_period": grace_period}
    if location.get_backend_name() == "sqlite":
        assert location.database is not None
        if not location.database.startswith("file:"):  # SQLite's own URIs are left to SQLite
            _check_file(Path(location.database), "SQLite file")
        options["engine_kwargs"] = {"connect_args": {"timeout": LOCK_TIMEOUT}}
        return _open(SQLiteStorage, location, options, "its permissions and the disk's free space")
    engine: dict[str, Any] = {"pool_pre_ping": True, "connect_args": {}}
    options["engine_kwargs"] = engine
    # Other drivers, which the URL may name, spell it differently.
    if location.drivername in _DRIVERS.values() and "connect_timeout" not in location.query:
        engine["connect_args"]["connect_timeout"] = _CONNECT_TIMEOUT
    storage: type[SteadyStorage] = SteadyStorage
    if location.get_backend_name() == "mysql":
        engine["isolation_level"], storage = ISOLATION, MySQLStorage
    return _open(storage, location, options, "host, port, database, user and password")


def masked(url: str) -> str:
    """`url` with its password, also one among the query's settings, shown as `***`."""
    url = re.sub(r"(?<=://)([^/:@]*):.*@", r"\1:***@", url)
    return re.sub(r"(?i)([?&][^=&]*pass[^=&]*=)[^&]*", r"\1***", url)


def _read_environment(name: str) -> str:
    url = os.environ.get(name, "")
    if not url or url.startswith(_FROM_ENVIRONMENT):
        raise ValueError(
            f"the storage is {_FROM_ENVIRONMENT}{name}, but the environment variable {name!r} "
            f"holds no URL: {_EXPECTED}"
        )
    return url


def _check_heartbeat(interval: int | None, grace_period: int, max_retry: int) -> None:
    if interval is not None and interval < 1:
        raise ValueError(
            f"heartbeat_interval is {interval}, expected at least 1 second, or None for none"
        )
    if interval is not None and grace_period <= interval:
        raise ValueError(
            f"grace_period is {grace_period} seconds, expected more than the heartbeat_interval "
            f"of {interval}: living trials would be taken for dead"
        )
    if max_retry < 0:
        raise ValueError(f"max_retry is {max_retry}, expected 0 or more")


def _parse(url: str) -> sqlalchemy.URL:
    try:
        location = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        location = None
    if location is None:  # raised out here, so that no context quotes the URL
        shown = masked(url) if "://" in url else masked(f"://{url}").removeprefix("://")
        raise ValueError(f"can't read the storage URL {shown!r}: {_EXPECTED}")
    backend = location.drivername.partition("+")[0]
    if backend != "sqlite" and backend not in _DRIVERS:
        raise ValueError(f"unknown scheme {location.drivername!r} of the storage URL: {_EXPECTED}")
    if location.drivername in _DRIVERS:
        location = location.set(drivername=_DRIVERS[location.drivername])
    if backend == "mariadb":
        location = location.set(drivername=location.drivername.replace("mariadb", "mysql"))
    return location


def _open_journal(url: str) -> BaseStorage:
    if not url.startswith("journal:///") or url == "journal:///":
        raise ValueError(
            f"can't read the storage URL {url!r}: expected journal:///study.log (relative) or "
            f"journal:////folder/study.log (absolute)"
        )
    path = Path(url.removeprefix("journal:///"))
    _check_file(path, "journal")
    try:
        if path.exists():
            _check_first_line(path)
        return JournalStorage(JournalFileBackend(str(path)))
    except OSError as error:
        raise StorageUnavailableError(
            f"can't open the journal {path}: {error.strerror}; check the file's permissions"
        ) from error
    except (ValueError, KeyError, TypeError) as error:  # json.JSONDecodeError is a ValueError
        raise StorageUnavailableError(
            f"can't read the journal {path}: it is not a journal of Optuna, or damaged ({error})"
        ) from error


def _check_first_line(path: Path) -> None:
    """Optuna forgives a broken last line: then another file of one line would pass, and break."""
    with path.open("rb") as file:
        first = file.readline()
    if first and not (first.endswith(b"\n") and isinstance(json.loads(first), dict)):
        raise ValueError("its first line is no log entry")


def _open(
    storage: type[SteadyStorage], location: sqlalchemy.URL, options: dict[str, Any], to_check: str
) -> RDBStorage:
    """Make the storage, and its tables; again where another worker makes them at the same time."""
    # Optuna formats the URL as a template: braces, as in a password, must be doubled.
    url = location.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    shown = masked(location.render_as_string(hide_password=True))
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        problem: Exception
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                return storage(url, **options)
        except ImportError:
            driver = location.drivername.partition("+")[2]
            package = _TO_INSTALL.get(location.drivername, driver)
            problem = ImportError(
                f"the driver {driver!r} is not installed: run pip install '{package}'"
            )
        except RuntimeError as error:
            if "table schema" not in str(error):
                raise
            told = _OLDER.format(url=shown) if "storage upgrade" in str(error) else _NEWER
            problem = StorageUnavailableError(f"can't open the storage {shown}: {told}")
        except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError, sqlite3.Error) as error:
            if _made_by_another(error) and time.monotonic() < deadline:
                time.sleep(random.uniform(0.05, 0.5))
                continue
            told = _reason(error, location)
            check = _HELD if "is locked" in told else to_check
            problem = StorageUnavailableError(
                f"can't open the storage {shown}: {told}; check {check}"
            )
        break
    raise problem  # out here: a context or cause would carry the driver's text, password and all


def _made_by_another(error: Exception) -> bool:
    text = f"{error} {error.__cause__}".lower()
    return any(sign in text for sign in ("already exists", "unique", "duplicate", "is locked"))


def _reason(error: Exception, location: sqlalchemy.URL) -> str:
    """The driver's first line, without the password in any of its spellings."""
    while isinstance(error, StorageInternalError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    cause = getattr(error, "orig", None) or error
    text = str(cause).strip().partition("\n")[0]
    secrets = [location.password or ""]
    for key, value in location.query.items():
        if "pass" in key.lower():
            secrets += [value] if isinstance(value, str) else value
    for secret in filter(None, secrets):
        text = text.replace(secret, "***").replace(repr(secret)[1:-1], "***")
    return f"{type(cause).__name__}: {text}"


def _check_file(path: Path, what: str) -> None:
    """Refuse a file that can't be made or written, by name, before the driver does it vaguely."""
    folder = path.parent
    problem = ""
    if not folder.is_dir():
        problem = f"the folder {folder.absolute()} does not exist; make it first"
    elif path.is_dir():
        problem = "it is a folder; name a file"
    elif not os.access(folder, os.W_OK | os.X_OK):
        # Also for a file that exists: SQLite and the journal make their lock files beside it.
        problem = f"the folder {folder.absolute()} is not writable; choose another or its owner"
        problem += _TO_READ if path.exists() else ""
    elif path.exists() and not os.access(path, os.R_OK | os.W_OK):
        problem = f"it is not readable and writable for this user{_TO_READ}"
    if problem:
        raise StorageUnavailableError(f"can't open the {what} {path}: {problem}")
