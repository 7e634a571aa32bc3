"""Your own loop runs the trials, with Optuna's ask and tell.

    python examples/ask_and_tell.py

The script runs twenty trials with `study.ask` and `study.tell`. It enqueues the weights of the
first trial itself.
"""

from __future__ import annotations

import tempfile

import optuna
from optuna.trial import TrialState
from tiny.points import point_study

import optuna_merge as om
from optuna_merge.trials import weight_params


def main() -> None:
    """Twenty trials, and the report."""
    definition = point_study()
    with tempfile.TemporaryDirectory() as workdir:
        fitted = om.fit(definition, workdir, progress=False)
        study = om.open_search(fitted, "asked", seed=0)
        study.enqueue_trial(weight_params({"red": 1, "blue": 2}))
        objective = om.Objective(fitted, progress=False)
        for _ in range(20):
            trial = study.ask()
            try:
                study.tell(trial, objective(trial))
            except optuna.TrialPruned:  # a preview; if it is promoted, a copy of it is queued
                study.tell(trial, state=TrialState.PRUNED)
        print(om.format_report(om.make_report(study, fitted)))


if __name__ == "__main__":
    main()
