"""The posteriors of a study's true score and metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import optuna

from optuna_merge.surrogate._truth import TruthModel
from optuna_merge.trials import SCORE, Findings, TrialReader

Models = Mapping[str | None, TruthModel | None]


def truth_models(
    study: optuna.Study,
    findings: Findings,
    quantities: Iterable[str | None] | None = None,
    *,
    pending: bool = False,
) -> Models:
    """The posteriors of the score (`SCORE`) and of each task's metric, by all previews and truths.

    Of what nothing is known of it is None. `quantities`: of which only; `pending`: what runs or
    waits takes its part of the uncertainty away.
    """
    trials = study.get_trials(deepcopy=False)
    history = TrialReader(findings.tasks).read(study.study_name, trials)
    models: dict[str | None, TruthModel | None] = {}
    for quantity in findings.quantities if quantities is None else quantities:
        sign = findings.sign(quantity)
        if quantity is SCORE:
            series = history.score(sign)
        else:
            series = history.metric(findings.tasks.index(quantity), sign)
        known = len(series.previews) + len(series.truths)
        series = series if pending else replace(series, pending=None)
        models[quantity] = TruthModel.fit(series) if known else None
    return models
