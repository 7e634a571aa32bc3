"""Folders for a while, which go even if the process that made them was killed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_PREFIX = "merge-"


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent`, which is made, removed at the end of the block.

    What killed processes have left there is removed first: a folder in use is one whose lock is
    held, and nobody makes or removes one while another does.
    """
    parent.mkdir(parents=True, exist_ok=True)
    with FileLock(parent / "lock"):
        for left in parent.glob(f"{_PREFIX}*/"):
            _remove_unless_held(left)
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        held = _lock(folder)
        held.acquire()
    try:
        yield folder
    finally:
        _remove(folder, held)


def _lock(folder: Path) -> FileLock:
    """Beside the folder, where nothing of the program's gets in its way."""
    return FileLock(folder.with_name(f"{folder.name}.lock"))


def _remove_unless_held(folder: Path) -> None:
    held = _lock(folder)
    try:
        held.acquire(blocking=False)
    except Timeout:
        return
    _remove(folder, held)


def _remove(folder: Path, held: FileLock) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    held.release()
    Path(held.lock_file).unlink(missing_ok=True)
