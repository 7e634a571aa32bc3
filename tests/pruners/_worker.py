"""A worker process of `test_promotion_workers.py`: preview, finetune, until all is done.

What it trains is named by its weight: copies and clones of a trial share it, others don't.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from optuna_merge.pruners import PromotionPruner, read_ledger
from optuna_merge.storages import create_storage


def objective(trial: optuna.Trial) -> float:
    w = trial.suggest_float("w_a", 0, 1)
    trial.suggest_float("w_b", 0, 1)
    known = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
    if 0 not in known:
        time.sleep(0.01)
        trial.report(w, 0)
    if trial.should_prune():
        raise optuna.TrialPruned
    with told("finetune", w):
        time.sleep(0.2)
    return w


@contextmanager
def told(what: str, w: float) -> Iterator[None]:
    print("begin", what, w, flush=True)
    yield
    print("end", what, w, flush=True)


def main(url: str, n_previews: int) -> None:
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = create_storage(url, heartbeat_interval=1, grace_period=5, max_retry=20)
    pruner = PromotionPruner(fraction=0.25, warmup=8)
    study = optuna.load_study(study_name="s", storage=storage, pruner=pruner)
    print("ready", flush=True)
    while True:
        trials = study.get_trials(deepcopy=False)
        states = {trial.state for trial in trials}
        if len(read_ledger(trials).previews) < n_previews or TrialState.WAITING in states:
            try:
                study.optimize(objective, n_trials=1)
            except (ValueError, UpdateFinishedTrialError):
                # So slow a machine that it was taken for dead: another one does it again.
                print("lost", flush=True)
        elif TrialState.RUNNING in states:  # by another worker, or by nobody any more
            optuna.storages.fail_stale_trials(study)
            time.sleep(0.5)
        else:
            return


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
