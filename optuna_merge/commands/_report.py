"""`optuna-merge report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from optuna_merge.commands._definition import load_any
from optuna_merge.commands._existing import check_fitted, existing_study
from optuna_merge.commands._flags import AsJson, SearchFlags, WorkFlags


def report(
    where: WorkFlags,
    definition: Annotated[
        Path | None,
        typer.Argument(
            help="As for optimize. Without it the command reads the study alone: no test metrics."
        ),
    ] = None,
    as_json: AsJson = False,
    html: Annotated[
        Path | None,
        typer.Option(
            help="Write the page to this file; default: report-STUDY.html in the workdir, or here "
            "without a definition."
        ),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Write the tables as CSV files into this folder.")
    ] = None,
) -> None:
    """Print the answer of a study again, and write its page.

    Example: optuna-merge report studies/digits/optimize.py --workdir work --html digits.html
    """
    study = existing_study(where)
    if definition is None:
        from optuna_merge.commands._written import write_page
        from optuna_merge.reports import format_report, study_report

        report = study_report(study)
        typer.echo(json.dumps(report, indent=1) if as_json else format_report(report))
        write_page(study, html, csv)
        return
    check_fitted(where.workdir)
    found = load_any(definition)
    from optuna_merge.commands._search import search

    of_no_trials = SearchFlags(
        **vars(where), n_trials=0, patience=0.0, second_seed=False, as_json=as_json
    )
    search(found, of_no_trials, html=html, csv=csv)
