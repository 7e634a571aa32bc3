"""Models of the truths of a study, for its explorer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import optuna

from optuna_merge.surrogate import TruthModel
from optuna_merge.trials import SCORE, Findings, TrialReader

Models = Mapping[str | None, TruthModel | None]
"""Of the score (`SCORE`), where there is one, and by task; None where nothing is known."""


def truth_models(study: optuna.Study, findings: Findings) -> Models:
    """The posteriors of the score and of each task's metric, from all previews and truths."""
    trials = study.get_trials(deepcopy=False)
    history = TrialReader(findings.tasks).read(study.study_name, trials)
    models: dict[str | None, TruthModel | None] = {}
    for quantity in findings.quantities:
        sign = findings.sign(quantity)
        if quantity is SCORE:
            series = history.score(sign)
        else:
            series = history.metric(findings.tasks.index(quantity), sign)
        known = len(series.previews) + len(series.truths)
        models[quantity] = TruthModel.fit(replace(series, pending=None)) if known else None
    return models
