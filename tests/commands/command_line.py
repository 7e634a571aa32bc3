"""The command line as its tests use it: in a folder with the file `toy.py`."""

from __future__ import annotations

from pathlib import Path

import optuna
from typer.testing import CliRunner

from optuna_merge.cli import app

TESTS = Path(__file__).resolve().parents[1]

DEFINITION = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from helpers import toy_definition, toy_settings

def definition():
    return toy_definition()
"""
STORAGE = "sqlite:///optuna_merge.db"


def write_toy(arguments: str = "") -> None:
    """Writes `toy.py`, a definition with these arguments of `toy_definition`."""
    Path("toy.py").write_text(
        DEFINITION.replace("toy_definition()", f"toy_definition({arguments})")
    )


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def prints(*arguments: str) -> str:
    """Runs a command that must not fail; gives what it printed."""
    code, out, err = run(*arguments)
    assert code == 0, (out, err)
    return out


def fails(*arguments: str, code: int = 1) -> str:
    """Runs a command that must fail with that exit code; gives what it told."""
    found, out, err = run(*arguments)
    assert found == code, (out, err)
    assert "Traceback" not in err
    assert not out.strip()
    return err


def load_study(name: str = "optuna_merge") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=STORAGE)


def dashboard_figures(study: optuna.Study) -> str:
    """Names of what optuna-dashboard shows besides the trials."""
    return " ".join(study._storage.get_study_system_attrs(study._study_id))
