"""A worker process of `test_promotion_workers.py`: preview, ask, finetune, until all is done."""

from __future__ import annotations

import sys
import time
import warnings

import optuna
from optuna.trial import TrialState

from optuna_merge._optuna import lineage_root
from optuna_merge.pruners import PromotionPruner, read_ledger
from optuna_merge.storages import create_storage


def objective(trial: optuna.Trial) -> float:
    w = trial.suggest_float("w_a", 0, 1)
    frozen = trial.study.get_trials(deepcopy=False)[trial.number]
    if 0 not in frozen.intermediate_values:
        time.sleep(0.01)
        trial.report(w, 0)
    if trial.should_prune():
        raise optuna.TrialPruned
    print("begin", lineage_root(frozen), flush=True)
    time.sleep(0.2)
    print("end", lineage_root(frozen), flush=True)
    return w


def main(url: str, n_previews: int) -> None:
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = create_storage(url, heartbeat_interval=1, grace_period=3, max_retry=20)
    study = optuna.load_study(
        study_name="s", storage=storage, pruner=PromotionPruner(fraction=0.25, warmup=8)
    )
    print("ready", flush=True)
    while True:
        trials = study.get_trials(deepcopy=False)
        states = {trial.state for trial in trials}
        if len(read_ledger(trials).previews) < n_previews or TrialState.WAITING in states:
            study.optimize(objective, n_trials=1)
        elif TrialState.RUNNING in states:  # by another worker, or by nobody any more
            optuna.storages.fail_stale_trials(study)
            time.sleep(0.1)
        else:
            return


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
