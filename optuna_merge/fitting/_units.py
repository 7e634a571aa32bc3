"""Work that several workers share out: every unit is done once, by one of them, for all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout


@dataclass(frozen=True)
class Unit:
    """A piece of work that has to be done once.

    Attributes:
        name: For people.
        key: Identifies what is made: units of one key make the same.
        work: Makes the files, or finds them, and returns them. Every worker calls it, to have
            what was made; of several that miss the files only one at a time.
    """

    name: str
    key: str
    work: Callable[[], Sequence[Path]]


class Sharing(Protocol):
    """How workers share units of work."""

    def work_off(self, units: Sequence[Unit]) -> None:
        """Return when all units are done and this worker has called all of them."""


class FolderSharing:
    """Sharing among processes with one working folder, by file locks, which end with a process."""

    def __init__(self, workdir: Path) -> None:
        self._folder = workdir / "units"

    def work_off(self, units: Sequence[Unit]) -> None:
        """Do what no other process is at, then take what the others have made."""
        self._folder.mkdir(parents=True, exist_ok=True)
        pending = list(units)
        while pending:
            for unit in pending:
                try:
                    with FileLock(self._folder / f"{unit.key}.lock", timeout=0):
                        unit.work()
                except Timeout:
                    continue
                pending.remove(unit)
                break
            else:
                time.sleep(0.2)
