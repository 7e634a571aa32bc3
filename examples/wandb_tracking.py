"""Track trials in Weights & Biases, with the callback of optuna-integration; offline.

    python examples/wandb_tracking.py

A study of optuna_merge is an Optuna study, so Optuna's callbacks work. `wandb sync` uploads an
offline run. You need wandb and optuna-integration, which has deprecated this callback and will
drop it in version 6.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import wandb
from optuna_integration import WeightsAndBiasesCallback
from tiny.points import point_study

import optuna_merge as om


def search(callback: object, workdir: Path) -> None:
    """A search with one callback after every trial."""
    fitted = om.fit(point_study(), workdir, progress=False)
    study = om.open_search(fitted, "tracked", seed=0)
    study.optimize(om.Objective(fitted, progress=False), n_trials=8, callbacks=[callback])
    print(om.format_report(om.make_report(study, fitted)))


def main() -> None:
    """Every trial is a step of one run."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"project": "task-weights", "mode": "offline", "dir": folder}
        callback = WeightsAndBiasesCallback(metric_name="score", wandb_kwargs=options)
        search(callback, Path(folder) / "work")
        wandb.finish()
        print(
            "\nRuns:", *sorted(path.name for path in Path(folder, "wandb").glob("offline-run-*"))
        )


if __name__ == "__main__":
    main()
