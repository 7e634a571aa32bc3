"""Definitions in files, and what is told of wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands.command_line import fails, run
from optuna_merge.commands._definition import load_any


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "user.py: no function definition() -> StudyDefinition in it"),
        ("def definition():\n    return", "user.py: definition() gave NoneType"),
        ("def definition(:\n", "user.py:1: SyntaxError: "),
        ("import nosuchpackage\n", "user.py:1: ModuleNotFoundError: No module named"),
        ("def definition():\n\n    return nosuch\n", "user.py:3: NameError: name 'nosuch'"),
        (
            "def definition():\n    return open('nosuch.csv')\n",
            "user.py:2: [Errno 2] No such file or directory: 'nosuch.csv'",
        ),
        (
            "import optuna_merge as om\ndef definition():\n"
            "    return om.FinetuneSettings(steps=-1)\n",
            "user.py:3: steps must be at least 1, got -1",
        ),
    ],
)
def test_errors_in_a_python_definition_name_the_line(folder: Path, text: str, told: str) -> None:
    Path("user.py").write_text(text)
    assert told in fails("fit", "user.py")
    assert not Path("workdir").exists()


def test_debug_keeps_the_traceback(folder: Path) -> None:
    Path("user.py").write_text("def definition():\n    return nosuch\n")
    with pytest.raises(ValueError, match="NameError") as error:
        run("fit", "user.py", "--debug")
    assert isinstance(error.value.__cause__, NameError)


def test_what_is_loaded_is_said_at_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    Path("user.py").write_text("raise ValueError('later')\n")
    with caplog.at_level("INFO"), pytest.raises(ValueError, match="later"):
        load_any(Path("user.py"))
    assert caplog.messages == ["loading user.py with its data and model"]
