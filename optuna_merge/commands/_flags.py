"""Flags that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

Definition = Annotated[
    Path,
    typer.Argument(
        help="A YAML file as `optuna-merge init` writes it, or a Python file with a function "
        "`definition() -> StudyDefinition`."
    ),
]
Artifacts = Annotated[
    str | None,
    typer.Option(help="Folder or s3://bucket through which machines share task runs."),
]
KeepBest = Annotated[
    int | None,
    typer.Option(help="How many of the best finetunes keep their models; default: all."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and debugging messages.")]


@dataclass(frozen=True, kw_only=True)
class StudyFlags:
    """Which study."""

    study_name: Annotated[
        str, typer.Option(help="Name of the study; optimize and fit create it.")
    ] = "optuna_merge"
    storage: Annotated[
        str, typer.Option(help="sqlite:///FILE, postgresql://..., or env:NAME.")
    ] = "sqlite:///optuna_merge.db"


@dataclass(frozen=True, kw_only=True)
class WorkFlags(StudyFlags):
    """Which study, and where its files are."""

    workdir: Annotated[
        Path, typer.Option(help="Folder of task runs, posteriors and finetunes.")
    ] = Path("workdir")


@dataclass(frozen=True, kw_only=True)
class SearchFlags(WorkFlags):
    """All flags of a search."""

    n_trials: Annotated[
        int | None,
        typer.Option(
            help="Trials to finish; a killed run, started again, finishes what is missing."
        ),
    ] = 100
    timeout: Annotated[
        float | None,
        typer.Option(help="Seconds after which no new trial starts, except promoted ones."),
    ] = None
    fraction: Annotated[
        float | None,
        typer.Option(
            help="Promoted finetunes per preview; default: a finetune comes when another preview "
            "is not worth its price."
        ),
    ] = None
    max_promotions: Annotated[
        int | None, typer.Option(help="Cap on promoted finetunes of the whole study.")
    ] = None
    budget: Annotated[
        float | None,
        typer.Option(
            help="What the whole study may cost, in units of one finetune's time: task runs, "
            "posteriors, previews and all finetunes."
        ),
    ] = None
    seed: Annotated[int | None, typer.Option(help="Seed of the search.")] = None
    second_seed: Annotated[
        bool | None,
        typer.Option(
            "--second-seed/--no-second-seed",
            help="Finetune uniform weights twice, which tells the noise of a finetune.",
            show_default="the definition's, or else twice",
        ),
    ] = None
    stop_when_flat: Annotated[
        bool | None,
        typer.Option(
            "--stop-when-flat/--keep-going",
            help="Stop when the best weights and another finetune are together expected to gain "
            "less than half the noise over uniform weights.",
            show_default="the definition's, or else stop",
        ),
    ] = None
    until: Annotated[
        float | None,
        typer.Option(
            help="Stop when another finetune is expected to improve on the best one by less than "
            "this share of the noise."
        ),
    ] = None
    artifacts: Artifacts = None
    role: Annotated[
        str,
        typer.Option(
            help="What this worker does: preview (no finetunes), finetune (promoted trials and "
            "baselines), or any."
        ),
    ] = "any"
    patience: Annotated[
        float,
        typer.Option(
            help="Seconds without a change in the study after which a finetuning worker ends; "
            "a tenth of that once all previewing workers have ended."
        ),
    ] = 600.0
    keep_best: KeepBest = None
    as_json: AsJson = False
