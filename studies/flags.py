"""Flags of the scripts that measure any study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

Workdir = Annotated[
    Optional[Path],  # noqa: UP045 (typer reads it)
    typer.Option(help="Folder of finetunes and posteriors; default workdir/<study>."),
]
Results = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Folder of the tables; default results beside the definition."),
]
Seeds = Annotated[int, typer.Option(help="Sets of runs.")]
Targets = Annotated[str, typer.Option(help="Tasks, separated by commas.")]


def listed(text: str) -> list[str]:
    """What a flag names, separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def workdir_of(definition: Path, workdir: Path | None) -> Path:
    """The working folder that was named, or the study's own."""
    return workdir or Path("workdir") / definition.resolve().parent.name


def results_of(definition: Path, results: Path | None) -> Path:
    """The folder of tables that was named, or the one beside the definition."""
    return results or definition.parent / "results"
