"""What a part of the GPU run has found so far: written after each finding, so none is lost."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna_merge._base.files import write_json


class Findings:
    """A JSON file that grows, and the time that is left.

    Args:
        path: The file.
        seconds: How long this part may take.
        miniature: Whether sizes are to be small.
    """

    def __init__(self, path: Path, seconds: float, miniature: bool) -> None:
        self._path = path
        self._end = time.monotonic() + seconds
        self.miniature = miniature
        self.values: dict[str, Any] = {}

    @property
    def left(self) -> float:
        """Seconds left."""
        return self._end - time.monotonic()

    def put(self, name: str, value: Any) -> None:
        """Write a value down under a name."""
        self.values[name] = value
        write_json(self._path, self.values)

    def add(self, name: str, entry: Any) -> None:
        """Write an entry at the end of the list `name`."""
        self.put(name, [*self.values.get(name, []), entry])

    def tried(self, name: str, entry: dict[str, Any], measure: Callable[[], Any]) -> None:
        """Measure, and add what comes of it to the list `name`: numbers, or the error.

        Args:
            name: The list.
            entry: What is measured.
            measure: Returns further keys of the entry.
        """
        if self.left <= 0:
            self.add(name, entry | {"error": "no time was left"})
            return
        try:
            self.add(name, entry | measure())
        except Exception as error:  # the next one may well work
            self.add(name, entry | {"error": f"{type(error).__name__}: {error}"[:600]})


def findings_of_command() -> tuple[Findings, argparse.Namespace]:
    """From the flags that every part has, and those that the mixture has."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--miniature", action="store_true")
    parser.add_argument("--smollm", type=Path)
    parser.add_argument("--cache", type=Path)
    given = parser.parse_args()
    return Findings(given.path, given.seconds, given.miniature), given
