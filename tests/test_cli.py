"""The command line as a whole: its help, and that asking for it imports next to nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from optuna_merge import __version__
from optuna_merge.cli import app

HEAVY = {"torch", "transformers", "botorch", "datasets", "timm", "accelerate"}
SLOW = HEAVY | {"optuna", "sqlalchemy", "numpy", "yaml", "scipy"}
COMMANDS = {"init", "fit", "optimize", "report", "diagnose", "export", "gc"}


def imported(code: str) -> set[str]:
    """Modules that a process has imported at the end of this code."""
    code = f"import sys\ntry:\n    {code}\nfinally:\n    print('MODULES', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout[done.stdout.index("MODULES") :].split())


@pytest.mark.parametrize(
    "code",
    [
        "import optuna_merge",
        "import optuna_merge.samplers, optuna_merge.pruners, optuna_merge.storages",
    ],
)
def test_heavy_packages_are_not_imported(code: str) -> None:
    assert HEAVY & imported(code) == set()


@pytest.mark.parametrize("arguments", [["--help"], ["optimize", "--help"], ["--version"]])
def test_help_imports_next_to_nothing(arguments: list[str]) -> None:
    call = f"import optuna_merge.cli as cli; sys.argv = ['optuna-merge', *{arguments}]; cli.main()"
    assert SLOW & imported(call) == set()


def test_version_and_help() -> None:
    def printed(*arguments: str) -> str:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == 0
        return result.output

    assert printed("--version") == f"{__version__}\n"
    text = printed("--help")
    for command in COMMANDS:
        assert command in text
        told = printed(command, "--help")
        assert f"Example: optuna-merge {command} " in told
        assert "--debug" in told
