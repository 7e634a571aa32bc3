"""Track trials in MLflow, with the callback of optuna-integration.

    python examples/mlflow_tracking.py                       # keeps nothing
    python examples/mlflow_tracking.py sqlite:///mlflow.db
    mlflow ui --backend-store-uri sqlite:///mlflow.db

A study of optuna_merge is an Optuna study, so Optuna's callbacks work. You need mlflow and
optuna-integration. optuna-integration has deprecated this callback and will drop it in version 6;
a dozen lines around `mlflow.log_metric` can replace it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import mlflow
from optuna_integration import MLflowCallback
from tiny.points import point_study

import optuna_merge as om


def search(callback: object, workdir: Path) -> None:
    """A search with one callback after every trial."""
    fitted = om.fit(point_study(), workdir, progress=False)
    study = om.open_search(fitted, "tracked", seed=0)
    study.optimize(om.Objective(fitted, progress=False), n_trials=8, callbacks=[callback])
    print(om.format_report(om.make_report(study, fitted)))


def main() -> None:
    """Every trial is a run, with its preview, truth and task weights as tags."""
    with tempfile.TemporaryDirectory() as folder:
        uri = sys.argv[1] if len(sys.argv) > 1 else f"sqlite:///{folder}/mlflow.db"
        search(MLflowCallback(uri, metric_name="score"), Path(folder) / "work")
        mlflow.set_tracking_uri(uri)
        runs = mlflow.search_runs(search_all_experiments=True)
        print(f"\nMLflow has {len(runs)} runs")


if __name__ == "__main__":
    main()
