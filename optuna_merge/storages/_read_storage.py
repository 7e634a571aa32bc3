"""`read_storage`: a storage to read from, also where nothing can be written."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import tempfile
import weakref
from contextlib import closing
from pathlib import Path

import sqlalchemy
from optuna.storages import BaseStorage

from optuna_merge.storages._create_storage import create_storage

_logger = logging.getLogger(__name__)

_FILES = {"sqlite": "sqlite:///", "journal": "journal:///"}
"""Schemes of storages that are files -> the URL of one, without its path."""


def read_storage(url: str) -> BaseStorage:
    """Open a storage to read studies, as `create_storage` does.

    SQLite and Optuna's journal write beside their file even to read it. Where the file or its
    folder can't be written, this opens a copy in a temporary folder, which is removed with the
    storage; what is written into it is lost.

    Args:
        url: As for `create_storage`.

    Raises:
        ValueError, ImportError, StorageUnavailableError: as `create_storage`.
    """
    scheme, path = _file_of(url)
    if path is None or not path.is_file() or _is_writable(path) or not os.access(path, os.R_OK):
        return create_storage(url)
    folder = Path(tempfile.mkdtemp(prefix="optuna-merge-"))
    try:
        copy = folder / path.name
        _copy(scheme, path, copy)
        storage = create_storage(f"{_FILES[scheme]}{copy}")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(storage, shutil.rmtree, folder, ignore_errors=True)
    _logger.info("%s can't be written here: a copy of it is read", path)
    return storage


def _file_of(url: str) -> tuple[str, Path | None]:
    """The scheme, and the file where the storage is a plain one."""
    if url.startswith(_FILES["journal"]):
        return "journal", Path(url.removeprefix(_FILES["journal"]))
    try:
        location = sqlalchemy.make_url(url)
    except sqlalchemy.exc.ArgumentError:
        return "", None
    name = location.database
    if location.drivername != "sqlite" or not name or name.startswith((":", "file:")):
        return "", None
    return "sqlite", Path(name)


def _is_writable(path: Path) -> bool:
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK | os.X_OK)


def _copy(scheme: str, path: Path, copy: Path) -> None:
    """The file as it is now, with what SQLite has in its log."""
    if scheme == "sqlite":
        try:
            where = f"{path.absolute().as_uri()}?mode=ro"
            with (
                closing(sqlite3.connect(where, uri=True)) as source,
                closing(sqlite3.connect(copy)) as target,
            ):
                source.backup(target)
            return
        except sqlite3.Error:  # nobody has it open, and SQLite can't make its index of the log
            log = path.with_name(f"{path.name}-wal")
            if log.is_file():
                shutil.copyfile(log, copy.with_name(f"{copy.name}-wal"))
    shutil.copyfile(path, copy)
