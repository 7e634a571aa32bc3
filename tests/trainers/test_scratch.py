"""Folders for a while: what a killed process has left goes, what another one uses stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from optuna_merge.trainers._scratch import scratch_folder

HELD = """
import sys, time
from pathlib import Path
from optuna_merge.trainers._scratch import scratch_folder
with scratch_folder(Path(sys.argv[1])) as place:
    (place / "model").write_text("large")
    print(place, flush=True)
    time.sleep(600)
"""


def test_it_goes_at_the_end_and_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), scratch_folder(tmp_path / "merged") as place:
        (place / "model").write_text("large")
        raise KeyError
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["lock"]


def test_what_a_killed_process_has_left_goes_and_what_one_uses_stays(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HELD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        used = Path(other.stdout.readline().strip())
        with scratch_folder(tmp_path) as place:
            assert place != used
            assert (used / "model").exists()
    finally:
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        other.stdout.close()
    assert used.exists()
    with scratch_folder(tmp_path):
        assert not used.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
