"""MySQL and MariaDB: how a connection to them and Optuna's tables are set up."""

from __future__ import annotations

import logging
from typing import Any

import sqlalchemy

from optuna_merge.storages._rdb import SteadyStorage

_logger = logging.getLogger(__name__)

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
