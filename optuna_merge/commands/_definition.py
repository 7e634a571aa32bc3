"""The definition that a command is given, in YAML or in Python."""

from __future__ import annotations

import importlib.util
import logging
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna_merge.definition import CommandDefinition, StudyDefinition

_logger = logging.getLogger(__name__)

YAML = (".yaml", ".yml")


def load_definition(path: Path) -> StudyDefinition:
    """Make the definition of the own training loop that a file describes.

    Args:
        path: A YAML file, or a Python file with a function `definition() -> StudyDefinition`.

    Raises:
        ValueError: there is no such file, or it doesn't make one; the message names the line.
    """
    found = load_any(path)
    from optuna_merge.definition import CommandDefinition

    if isinstance(found, CommandDefinition):
        raise ValueError(
            f"{path} is a study of a command, whose models this command doesn't know; they are "
            f"in the working folder, in program-runs"
        )
    return found


def load_any(path: Path) -> StudyDefinition | CommandDefinition:
    """Make the definition that a file describes, a program's included; see `load_definition`."""
    if not path.is_file():
        raise ValueError(
            f"no file {path}; give a YAML file (optuna-merge init writes one), or a Python file "
            f"with a function definition()"
        )
    _logger.info("loading %s with its data and model", path)
    if path.suffix in YAML:
        from optuna_merge.definition import read_definition

        return read_definition(path)
    try:
        found = _made_by(path)
    except Exception as error:
        raise ValueError(f"{_where(path, error)}: {_message(error)}") from error
    from optuna_merge.definition import CommandDefinition, StudyDefinition

    if not isinstance(found, StudyDefinition | CommandDefinition):
        raise ValueError(
            f"{path}: definition() gave {type(found).__name__}, expected a StudyDefinition"
        )
    return found


def _made_by(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("optuna_merge_user_definition", path)
    if spec is None or spec.loader is None:
        raise ValueError("the name of a definition ends with .py, .yaml or .yml")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))
    spec.loader.exec_module(module)
    if not hasattr(module, "definition"):
        raise ValueError("no function definition() -> StudyDefinition in it")
    return module.definition()


def _where(path: Path, error: Exception) -> str:
    """The file, and the last of its lines that led to the error."""
    if isinstance(error, SyntaxError) and error.filename:
        return (
            f"{path if Path(error.filename) == path.absolute() else error.filename}:{error.lineno}"
        )
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename) == path.absolute()
    ]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _message(error: Exception) -> str:
    """The message alone where it is made for readers."""
    if isinstance(error, ValueError | OSError):
        return str(error)
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {text}"
