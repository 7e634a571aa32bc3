"""The command line, `optuna-merge`: a file of `commands/` for each command."""

from __future__ import annotations

from typing import Annotated

import typer

from optuna_merge._version import __version__
from optuna_merge.commands import COMMANDS, script

__all__ = ["app", "main", "script"]

app = typer.Typer(
    help="Choose task weights for multitask finetuning through Bayesian model-merging previews.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


for _command in COMMANDS:
    app.command()(_command)


def main() -> None:
    """Entry point of `optuna-merge`."""
    app()
