"""Track trials in Weights & Biases, with the callback of optuna-integration; offline.

    python examples/wandb_tracking.py

An optuna_merge study is an Optuna study, and its objective an ordinary one: callbacks just work.
`wandb sync` uploads what an offline run has written. Needs wandb and
optuna-integration, which calls this callback deprecated and will drop it in its version 6.
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
