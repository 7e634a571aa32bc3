"""A worker of `test_sharing.py`: fits the toy study, slowly, through its own working folder.

    python _fitter.py STORAGE ARTIFACTS WORKDIR

Says "begin TASK" when a run trains, "rung TASK" after each rung, and "done FINGERPRINT".
With "-" for the artifacts the working folder alone is shared.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers import toy_definition

from optuna_merge.artifacts import SharedFiles, open_artifact_store
from optuna_merge.finetuning import _store
from optuna_merge.fitting import fit
from optuna_merge.search import open_study
from optuna_merge.storages import create_storage
from optuna_merge.workers import StudySharing

finetune = _store.finetune


def slow(model: Any, tasks: Any, weights: Any, settings: Any, **options: Any) -> Any:
    name = "+".join(task for task, weight in weights.items() if weight)
    print("begin", name, flush=True)
    on_rung = options.pop("on_rung")

    def slow_rung(step: int, evaluations: Any) -> None:
        on_rung(step, evaluations)
        print("rung", name, flush=True)
        time.sleep(0.7)

    return finetune(model, tasks, weights, settings, on_rung=slow_rung, **options)


def main(url: str, artifacts: str, workdir: Path) -> None:
    logging.basicConfig(level=logging.INFO)
    sharing = None
    definition = toy_definition()
    if artifacts != "-":
        storage = create_storage(url, heartbeat_interval=1, grace_period=3)
        study = open_study("s", storage, definition.directions)
        files = SharedFiles(study, open_artifact_store(artifacts), workdir)
        sharing = StudySharing(study, files, workdir)
    print("ready", flush=True)
    sys.stdin.readline()
    fitted = fit(definition, workdir, progress=False, sharing=sharing)
    print("done", fitted.fingerprint, flush=True)


if __name__ == "__main__":
    _store.finetune = slow
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
