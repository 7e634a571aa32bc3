"""The checkpoints that a Trainer has left in its folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from optuna_merge._base.files import remove

_STATE = "trainer_state.json"
"""What a Trainer writes last into a checkpoint."""


def newest_checkpoint(folder: Path) -> tuple[int, Path] | None:
    """Step and folder of the newest checkpoint that a kill has left whole; None: there is none."""
    for step, path in sorted(_checkpoints(folder), reverse=True):
        try:
            state = json.loads((path / _STATE).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            continue
        if state.get("global_step") == step:
            return step, path
    return None


def remove_checkpoints(folder: Path) -> None:
    """Remove what only a run that goes on would need."""
    for path in checkpoints_in(folder):
        remove(path)


def checkpoints_in(folder: Path) -> list[Path]:
    """All of them, whole or not."""
    return [path for _, path in sorted(_checkpoints(folder))]


def _checkpoints(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.glob("checkpoint-*"):
        if (found := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir():
            yield int(found[1]), path
