"""`optuna-merge replay`."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optuna_merge.commands._definition import load_any
from optuna_merge.commands._existing import existing_study
from optuna_merge.commands._flags import SearchFlags

if TYPE_CHECKING:
    import optuna


def replay(
    flags: SearchFlags,
    general: Annotated[str, typer.Option(help="Name of the task that is the general set.")],
    definition: Annotated[
        Path | None,
        typer.Argument(
            help="As for optimize, with two tasks: your data and a general set. Without it the "
            "command reads an existing study and trains nothing."
        ),
    ] = None,
    keep: Annotated[
        float,
        typer.Option(
            help="Share of the general metric to keep; 1 is what the general set alone reaches. "
            "A loss may be at most 1/KEEP times as large."
        ),
    ] = 0.95,
) -> None:
    """Find how much of a general set to mix into your own data: both metrics over its share.

    It searches the best metric on your data under the constraint that the general metric is kept.

    Example: optuna-merge replay study.yaml --general chat --keep 0.95
    """
    from optuna_merge.surrogate import keeping, own_task

    constraint = keeping(general, keep)
    if definition is None:
        _tell(existing_study(flags), general, keep, flags.as_json)
        return
    found = load_any(definition)
    own = own_task(found.names, general)
    from optuna_merge.commands._search import search
    from optuna_merge.commands._written import page_of, write_page

    def told(study: optuna.Study) -> None:
        _tell(study, general, keep, flags.as_json)
        write_page(study, page_of(study, flags.workdir), None)

    search(replace(found, score=f"target:{own}", constraints=(constraint,)), flags, told=told)


def _tell(study: optuna.Study, general: str, keep: float, as_json: bool) -> None:
    from optuna_merge import surrogate
    from optuna_merge.reports import format_replay

    found = surrogate.replay(study, general, keep)
    typer.echo(json.dumps(asdict(found), indent=1) if as_json else format_replay(found))
    if found.best is not None and not as_json:
        weights = f"{found.own.task}={1 - found.best.share:.2f},{general}={found.best.share:.2f}"
        typer.echo(
            f"\nFor another trainer: optuna-merge export --mixture FORM --weights {weights}"
        )
