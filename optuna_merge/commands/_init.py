"""`optuna-merge init`."""

from __future__ import annotations

from pathlib import Path

import typer

from optuna_merge.commands._definition import YAML


def init(file: Path, force: bool) -> None:
    from optuna_merge._base.files import atomic_path
    from optuna_merge.yaml_definition import TEMPLATE

    if file.suffix not in YAML:
        raise ValueError(f"a definition's name ends with .yaml or .yml, got {file}")
    if file.exists() and not force:
        raise FileExistsError(f"{file} is there already; take another name, or --force")
    with atomic_path(file) as temporary:
        temporary.write_text(TEMPLATE, encoding="utf-8")
    typer.echo(f"{file}: edit it, then run  optuna-merge optimize {file}")
