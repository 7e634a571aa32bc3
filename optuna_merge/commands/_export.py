"""`optuna-merge export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from optuna_merge.commands._definition import load_definition
from optuna_merge.commands._existing import check_fitted, existing_study
from optuna_merge.commands._flags import AsJson, StudyFlags, WorkFlags


def export(
    where: WorkFlags,
    definition: Annotated[
        Path | None, typer.Argument(help="As for optimize; not needed with --mixture.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to create for the model.")] = None,
    mixture: Annotated[
        str | None,
        typer.Option(
            help="Print the task weights as lines for another trainer's configuration: trl, "
            "axolotl, llamafactory, torchtitan, datasets or json."
        ),
    ] = None,
    trial: Annotated[
        int | None, typer.Option(help="Number of a finetuned trial; default: the best one.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="TASK=WEIGHT,...: export the merge at these weights, without training; with "
            "--mixture these weights, without a study."
        ),
    ] = None,
    examples: Annotated[
        str | None,
        typer.Option(help="TASK=NUMBER,...: with --mixture, examples of the training data."),
    ] = None,
    label_tokens: Annotated[
        str | None,
        typer.Option(
            help="TASK=NUMBER,...: with --mixture, mean label tokens per example, if the trainer "
            "averages its loss over tokens."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the best model of a study into a folder that transformers, timm, peft or torch loads.

    With --mixture, print the task weights as lines for another trainer instead.

    Example: optuna-merge export studies/text/optimize.py --workdir work --out best
    """
    if trial is not None and weights is not None:
        raise ValueError("give --trial or --weights, not both")
    given = _by_task(weights, "--weights")
    if mixture is not None:
        if out is not None or as_json:
            raise ValueError(
                "give --mixture, which prints lines, or --out, which writes a model, not both"
                if out is not None
                else "give --mixture json in place of --json"
            )
        typer.echo(_mixture(mixture, where, trial, given, examples, label_tokens))
        return
    if definition is None or out is None:
        raise typer.BadParameter(
            "a model is exported from the file of its definition into a folder: give both, the "
            "latter with --out; or print the task weights with --mixture"
        )
    _write_model(definition, out, where, trial, given, force=force, as_json=as_json)


def _write_model(
    definition: Path,
    out: Path,
    where: WorkFlags,
    trial: int | None,
    given: dict[str, float] | None,
    *,
    force: bool,
    as_json: bool,
) -> None:
    from optuna_merge.commands._fitted import fitted
    from optuna_merge.exporting import check_free, export_model
    from optuna_merge.search import check_definition

    check_free(out, overwrite=force)
    study = None if given is not None else existing_study(where)
    check_fitted(where.workdir)  # else the tasks would be trained now
    found_definition = load_definition(definition)
    if study is not None:
        check_definition(study, found_definition.describe())  # before a fit that takes long
    fit = fitted(found_definition, where.workdir)
    found = export_model(fit, out, study=study, trial=trial, weights=given, overwrite=force)
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=1))
        return
    what = "merge" if found.trial is None else f"finetune of trial {found.trial}"
    told = ", ".join(f"{name} {weight:.3f}" for name, weight in found.weights.items())
    typer.echo(f"{found.folder}: the {what} at {told}")
    for model in found.models:
        typer.echo(f"  {model.folder}: {', '.join(model.tasks)}, for {model.format}")


def _mixture(
    form: str,
    where: StudyFlags,
    trial: int | None,
    weights: dict[str, float] | None,
    examples: str | None,
    label_tokens: str | None,
) -> str:
    """Task weights, given or else a study's, in the words of another trainer."""
    from optuna_merge.trainers import mixture_lines, study_mixture

    numbers, tokens = _by_task(examples, "--examples"), _by_task(label_tokens, "--label-tokens")
    sizes = None if numbers is None else {task: int(n) for task, n in numbers.items()}
    if weights is not None:
        chosen = {task: weight / sum(weights.values()) for task, weight in weights.items()}
        return mixture_lines(chosen, form, label_tokens=tokens, examples=sizes)
    study = existing_study(where)
    return study_mixture(study, form, trial=trial, label_tokens=tokens, examples=sizes)


def _by_task(text: str | None, flag: str) -> dict[str, float] | None:
    """What a flag `TASK=NUMBER,TASK=NUMBER` says, if it is given."""
    if text is None:
        return None
    numbers: dict[str, float] = {}
    for item in text.split(","):
        name, _, number = item.partition("=")
        name = name.strip()
        if name in numbers:
            raise ValueError(f"{flag} has the task {name!r} twice; give each one number")
        try:
            numbers[name] = float(number)
        except ValueError:
            word = "WEIGHT" if flag == "--weights" else "NUMBER"
            raise ValueError(
                f"can't read {item!r} in {flag}; expected TASK={word},TASK={word}"
            ) from None
    return numbers
