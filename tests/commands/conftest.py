from __future__ import annotations

from pathlib import Path

import pytest

from commands.command_line import write_toy


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the file `toy.py`."""
    monkeypatch.chdir(tmp_path)
    write_toy()
    return tmp_path
