"""`optuna-merge export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from optuna_merge.commands._definition import load_definition
from optuna_merge.commands._existing import check_fitted, existing_study
from optuna_merge.commands._flags import AsJson, Definition, WorkFlags
from optuna_merge.commands._numbers import numbers_by_task


def export(
    definition: Definition,
    out: Annotated[Path, typer.Option(help="Folder of the export; is made.")],
    where: WorkFlags,
    trial: Annotated[
        int | None, typer.Option(help="Number of a finetuned trial; default: the best one.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="TASK=WEIGHT,...: the merge at these weights, without training."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a study's best model, or another, as a folder for transformers, timm, peft or torch.

    Example: optuna-merge export studies/text/optimize.py --workdir work --out best
    """
    from optuna_merge.commands._fitted import fitted
    from optuna_merge.exporting import check_free, export_model

    if trial is not None and weights is not None:
        raise ValueError("give --trial or --weights, not both")
    check_free(out, overwrite=force)
    given = None if weights is None else numbers_by_task(weights, "--weights")
    study = None if given is not None else existing_study(where)
    check_fitted(where.workdir)  # else the tasks would be trained now
    fit = fitted(load_definition(definition), where.workdir)
    found = export_model(fit, out, study=study, trial=trial, weights=given, overwrite=force)
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=1))
        return
    what = "merge" if found.trial is None else f"finetune of trial {found.trial}"
    told = ", ".join(f"{name} {weight:.3f}" for name, weight in found.weights.items())
    typer.echo(f"{found.folder}: the {what} at {told}")
    for model in found.models:
        typer.echo(f"  {model.folder}: {', '.join(model.tasks)}, for {model.format}")
