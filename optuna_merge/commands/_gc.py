"""`optuna-merge gc`."""

from __future__ import annotations

from typing import Annotated

import typer

from optuna_merge.commands._definition import load_any
from optuna_merge.commands._existing import existing_study
from optuna_merge.commands._flags import Definition, KeepBest, WorkFlags


def gc(
    definition: Definition,
    where: WorkFlags,
    keep_best: KeepBest = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be deleted.")
    ] = False,
) -> None:
    """Delete models and checkpoints of finetunes that the study doesn't need.

    It keeps task runs, posteriors, and what running workers hold.

    Example: optuna-merge gc studies/digits/optimize.py --workdir work --keep-best 5 --dry-run
    """
    from optuna_merge.commands._fitted import existing_finetunes
    from optuna_merge.workers import Collector

    found, study = load_any(definition), existing_study(where)
    finetunes = existing_finetunes(study, found, where.workdir)
    collector = Collector(study, finetunes, keep_best=keep_best)
    removed = collector.find() if dry_run else collector.remove()
    for garbage in removed:
        trials = f"trial{'s' * (len(garbage.trials) > 1)} {', '.join(map(str, garbage.trials))}"
        typer.echo(f"{garbage.path}: {garbage.what} of {trials}, {garbage.size:,} bytes")
    verb = "could be removed" if dry_run else "removed"
    typer.echo(f"{len(removed)} files, {sum(g.size for g in removed):,} bytes {verb}")
