"""`optuna-merge diagnose`."""

from __future__ import annotations

import json

import typer

from optuna_merge.commands._existing import existing_study
from optuna_merge.commands._flags import AsJson, StudyFlags


def diagnose(where: StudyFlags, as_json: AsJson = False) -> None:
    """Say how far the previews of a study can be trusted.

    Example: optuna-merge diagnose --study-name digits --storage sqlite:///digits.db
    """
    from optuna_merge.calibration import format_calibration, study_calibration
    from optuna_merge.trials import task_names

    study = existing_study(where)
    found = study_calibration(study, task_names(study)).as_json()
    typer.echo(json.dumps(found, indent=1) if as_json else format_calibration(found))
