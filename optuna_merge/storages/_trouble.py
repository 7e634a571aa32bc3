"""Which errors of a database pass: it is away, as during a restart, or busy."""

from __future__ import annotations

import enum

import sqlalchemy


class Trouble(enum.Enum):
    """A trouble that may pass; the value is how to say it."""

    AWAY = "away"
    BUSY = "busy"


# PostgreSQL's SQLSTATE, by its first characters: connection exceptions, a server that shuts down
# or starts; rolled back for others' sake, out of connections, memory or disk, a lock not had.
_AWAY_STATES = ("08", "57P")
_BUSY_STATES = ("40", "53", "55P03")
# MySQL's error numbers: shutting down, and the client's own for no connection, or a lost one.
_AWAY_NUMBERS = frozenset({1053, 1077, 1079, 1927, 2002, 2003, 2006, 2013, 2055})
# Out of connections, memory or disk; a lock not had, a deadlock, a row changed since it was read.
_BUSY_NUMBERS = frozenset({1020, 1021, 1037, 1040, 1114, 1203, 1205, 1213})
_BUSY_WORDS = ("is locked", "is busy", "disk is full", "disk i/o error")  # SQLite's
_PASSING = (
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InternalError,
    sqlalchemy.exc.InterfaceError,
)


def passing_trouble(error: Exception) -> Trouble | None:
    """What passing trouble an error of SQLAlchemy, or Optuna's around one, tells of, if any."""
    cause = error if isinstance(error, sqlalchemy.exc.SQLAlchemyError) else error.__cause__
    if isinstance(cause, sqlalchemy.exc.TimeoutError):  # no connection of the pool became free
        return Trouble.BUSY
    if not isinstance(cause, sqlalchemy.exc.DBAPIError):
        return None
    if cause.connection_invalidated:
        return Trouble.AWAY
    if not isinstance(cause, _PASSING):
        return None
    driver = type(cause.orig).__module__.partition(".")[0]
    if driver == "psycopg":
        state = getattr(cause.orig, "sqlstate", None)
        if state is None or state.startswith(_AWAY_STATES):  # None: the client's own word
            return Trouble.AWAY
        return Trouble.BUSY if state.startswith(_BUSY_STATES) else None
    if driver == "pymysql":
        number = cause.orig.args[0] if cause.orig is not None and cause.orig.args else None
        if number in _AWAY_NUMBERS or number in (0, ""):  # PyMySQL's for a closed connection
            return Trouble.AWAY
        return Trouble.BUSY if number in _BUSY_NUMBERS else None
    text = str(cause.orig).lower()
    return Trouble.BUSY if any(word in text for word in _BUSY_WORDS) else None
