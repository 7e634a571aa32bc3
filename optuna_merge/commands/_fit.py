"""`optuna-merge fit`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from optuna_merge.commands._definition import load_any
from optuna_merge.commands._flags import Artifacts, AsJson, Definition, WorkFlags

if TYPE_CHECKING:
    from optuna_merge.fitting import FittedStudy
    from optuna_merge.trainers import FittedProgram


def fit(
    definition: Definition, where: WorkFlags, artifacts: Artifacts = None, as_json: AsJson = False
) -> None:
    """Finetune each task alone and make its posterior.

    Processes with one working folder share the work; with --artifacts several machines do.

    Example: optuna-merge fit studies/digits/optimize.py --workdir work
    """
    from optuna_merge._base.files import check_writable
    from optuna_merge.commands._fitted import check_own_loop, opened, shared_among, workbench
    from optuna_merge.storages import create_storage

    found = load_any(definition)
    check_own_loop(found, artifacts=artifacts)
    check_writable(where.workdir)
    sharing = None
    if artifacts is not None:
        study = opened(found, where.study_name, create_storage(where.storage))
        sharing = shared_among(study, artifacts, where.workdir)
    made = workbench(found, where.workdir, sharing)
    if as_json:
        typer.echo(json.dumps(_summary(made), indent=1))
        return
    for name, run in made.runs.items():
        value = made.alone[name]
        cost = f"{run.steps} steps, {run.seconds:.1f} s"
        if run.given is not None:
            cost = f"given: {run.given}"
        typer.echo(f"{name}: {value:.4f} alone, {cost}")


def _summary(fitted: FittedStudy | FittedProgram) -> dict[str, Any]:
    """The tasks' own runs, damping and costs as JSON values."""
    from optuna_merge.finetuning import FinishedRun

    tasks = {
        name: {
            "metrics": {n: m.value for n, m in run.evaluations[name].metrics.items()}
            if isinstance(run, FinishedRun)
            else dict(run.metrics),
            "steps": run.steps,
            "seconds": run.seconds,
            "reused": run.reused,
            "given": run.given,
            "file": str(run.path if isinstance(run, FinishedRun) else run.folder),
        }
        for name, run in fitted.runs.items()
    }
    return {
        "tasks": tasks,
        "damping": None if fitted.damping is None else fitted.damping.value,
        "costs": fitted.costs,
        "fingerprint": fitted.fingerprint,
    }
