"""`optuna-merge export`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import typer

from optuna_merge.commands._definition import load_definition
from optuna_merge.commands._existing import check_fitted, existing_study


def export(
    definition: Path,
    study_name: str,
    storage: str,
    workdir: Path,
    out: Path,
    trial: int | None,
    weights: str | None,
    force: bool,
    as_json: bool,
) -> None:
    from optuna_merge.commands._display import fit_shown
    from optuna_merge.exporting import check_free, export_model
    from optuna_merge.fitting import fit

    if trial is not None and weights is not None:
        raise ValueError("give --trial or --weights, not both")
    check_free(out, overwrite=force)
    given = None if weights is None else _parse_weights(weights)
    study = None if given is not None else existing_study(study_name, storage)
    check_fitted(workdir)  # else the tasks would be trained now
    with fit_shown():
        fitted = fit(load_definition(definition), workdir, progress=sys.stderr.isatty())
    found = export_model(fitted, out, study=study, trial=trial, weights=given, overwrite=force)
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=1))
        return
    what = "merge" if found.trial is None else f"finetune of trial {found.trial}"
    told = ", ".join(f"{name} {weight:.3f}" for name, weight in found.weights.items())
    typer.echo(f"{found.folder}: the {what} at {told}")
    for model in found.models:
        typer.echo(f"  {model.folder}: {', '.join(model.tasks)}, for {model.format}")


def _parse_weights(text: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for item in text.split(","):
        name, _, number = item.partition("=")
        name = name.strip()
        if name in weights:
            raise ValueError(f"--weights has the task {name!r} twice; give each one weight")
        try:
            weights[name] = float(number)
        except ValueError:
            raise ValueError(
                f"can't read {item!r} in --weights; expected TASK=WEIGHT,TASK=WEIGHT"
            ) from None
    return weights
