"""`optuna-merge init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optuna_merge.commands._definition import YAML


def init(
    file: Annotated[Path, typer.Argument(help="The file to write.")] = Path("study.yaml"),
    kind: Annotated[
        str,
        typer.Option(help="What is finetuned: text or image (classifiers), language, command."),
    ] = "text",
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
) -> None:
    """Write a commented YAML definition, to be edited.

    Example: optuna-merge init study.yaml --kind language
    """
    from optuna_merge._base.files import atomic_path
    from optuna_merge.definition import TEMPLATES

    if file.suffix not in YAML:
        raise ValueError(f"a definition's name ends with .yaml or .yml, got {file}")
    if kind not in TEMPLATES:
        raise ValueError(f"--kind must be one of {', '.join(TEMPLATES)}, got {kind!r}")
    if file.exists() and not force:
        raise FileExistsError(f"{file} is there already; take another name, or --force")
    with atomic_path(file) as temporary:
        temporary.write_text(TEMPLATES[kind], encoding="utf-8")
    typer.echo(f"{file}: edit it, then run  optuna-merge optimize {file}")
