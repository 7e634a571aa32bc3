"""Trials asked for in batches: their previews are made in one pass, where that is faster.

    python examples/ask_and_tell.py

For loops of your own: `study.ask`, weights of your choice, `study.tell`.
"""

from __future__ import annotations

import tempfile

import optuna
from optuna.trial import TrialState
from tiny.points import point_study

import optuna_merge as om
from optuna_merge.trials import weight_params


def main() -> None:
    """Two batches of ten trials; the first one is of weights that we want to see."""
    definition = point_study()
    with tempfile.TemporaryDirectory() as workdir:
        fitted = om.fit(definition, workdir, progress=False)
        study = om.open_study(
            "asked",
            om.create_storage(None),
            definition.directions,
            sampler=om.PreviewSampler(definition.names, seed=0, score=fitted.scores),
            pruner=om.PromotionPruner(fraction=0.25, score=fitted.scores, seed=0),
        )
        om.prepare_study(study, fitted)
        study.enqueue_trial(weight_params({"red": 1, "blue": 2}))
        objective = om.Objective(fitted, progress=False)
        for _ in range(2):
            trials = [study.ask() for _ in range(10)]
            objective.preview_many(trials)
            for trial in trials:
                try:
                    study.tell(trial, objective(trial))
                except optuna.TrialPruned:  # not promoted: it keeps its preview
                    study.tell(trial, state=TrialState.PRUNED)
        print(om.format_report(om.make_report(study, fitted)))


if __name__ == "__main__":
    main()
