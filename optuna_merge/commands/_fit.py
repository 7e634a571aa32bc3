"""`optuna-merge fit`: what it has made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna_merge.fitting import FittedStudy


def fit_summary(fitted: FittedStudy) -> dict[str, Any]:
    """The tasks' own runs, damping and costs as JSON values."""
    tasks = {
        name: {
            "metrics": {n: m.value for n, m in run.evaluations[name].metrics.items()},
            "steps": run.steps,
            "seconds": run.seconds,
            "reused": run.reused,
            "file": str(run.path),
        }
        for name, run in fitted.runs.items()
    }
    return {
        "tasks": tasks,
        "damping": None if fitted.damping is None else fitted.damping.value,
        "costs": fitted.costs,
        "fingerprint": fitted.fingerprint,
    }
