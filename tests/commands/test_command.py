"""Functions as commands: dataclasses stand for their flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from optuna_merge.commands._command import command


@dataclass(frozen=True, kw_only=True)
class Place:
    town: Annotated[str, typer.Option(help="Where.")] = "Lund"


@dataclass(frozen=True, kw_only=True)
class Visit(Place):
    days: int = 1


def travel(
    name: Annotated[str, typer.Argument(help="Who.")], visit: Visit, slow: bool = False
) -> None:
    """Go there."""
    if visit.days < 0:
        raise ValueError("days must not be negative")
    typer.echo(f"{name}, {visit}, {slow}")


def ran(*arguments: str, **defaults: object) -> tuple[int, str]:
    single = typer.Typer()
    single.command()(command(travel, **defaults))
    result = CliRunner().invoke(single, list(arguments))
    return result.exit_code, result.output


def test_flags_of_a_dataclass() -> None:
    assert ran("Eve") == (0, "Eve, Visit(town='Lund', days=1), False\n")
    code, text = ran("Eve", "--town", "Kiel", "--slow", "--days", "3")
    assert (code, text) == (0, "Eve, Visit(town='Kiel', days=3), True\n")


def test_other_defaults() -> None:
    assert ran("Eve", town="Bonn") == (0, "Eve, Visit(town='Bonn', days=1), False\n")


def test_help() -> None:
    code, text = ran("--help")
    assert code == 0
    for part in ("Go there.", "Who.", "Where.", "Lund", "--days", "--debug"):
        assert part in text


def test_errors_are_messages_but_for_debugging() -> None:
    assert ran("Eve", "--days", "-1") == (
        1,
        "error: ValueError: days must not be negative (--debug shows where it comes from)\n",
    )
    with pytest.raises(ValueError, match="negative"):
        command(travel)(name="Eve", town="Lund", days=-1, slow=False, debug=True)
