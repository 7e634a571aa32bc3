"""A study's script says at once that it is loading, before PyTorch is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CODE = """
import logging, runpy, sys
from optuna_merge.commands import _optimize

def told(record):
    print(record.getMessage(), "torch" in sys.modules)
    raise SystemExit

logging.getLogger(_optimize.__name__).addFilter(told)
sys.argv = [sys.argv[1]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("study", ["desks", "text"])
def test_the_first_line_comes_before_pytorch(study: str, tmp_path: Path) -> None:
    script = ROOT / "studies" / study / "optimize.py"
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(script)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "loading data and model False\n", done.stderr
