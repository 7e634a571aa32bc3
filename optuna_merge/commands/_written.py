"""The report of a study, printed and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import typer

from optuna_merge._base.files import file_name, write_json
from optuna_merge.fitting import Workbench
from optuna_merge.reports import format_report, make_report, write_csv, write_html


def write_report(
    study: optuna.Study,
    fitted: Workbench,
    folder: Path,
    html: Path | None,
    csv: Path | None,
    as_json: bool,
) -> None:
    """Print the report as a table or as JSON, and write it into the folder as JSON and a page."""
    report = make_report(study, fitted)
    path = page_of(study, folder).with_suffix(".json")
    write_json(path, report)
    typer.echo(json.dumps(report, indent=1) if as_json else format_report(report))
    if not as_json:
        typer.echo(f"\nThe same as JSON: {path}")
    if report["counts"]["previews"] or report["counts"]["truths"]:
        write_page(study, html or path.with_suffix(".html"), csv, report)


def page_of(study: optuna.Study, folder: Path) -> Path:
    """Where the page of a study is in a working folder."""
    return folder / f"report-{file_name(study.study_name)}.html"


def write_page(
    study: optuna.Study, html: Path | None, csv: Path | None, report: dict[str, Any] | None = None
) -> None:
    """Write the page, and the tables if they have a folder; standard error tells where."""
    html = html or Path(f"report-{file_name(study.study_name)}.html")
    write_html(html, study, report)
    typer.echo(f"As a page: {html}", err=True)
    if csv is not None:
        files = write_csv(csv, study, report)
        typer.echo(f"As tables: {', '.join(map(str, files))}", err=True)
