"""Metrics of finetunes on the tasks' test data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from optuna_merge._base.files import write_json
from optuna_merge._base.turns import models_turn
from optuna_merge.fitting import FittedStudy, Workbench
from optuna_merge.models import evaluate_tasks, task_batches
from optuna_merge.trials import SCORE, Outcome, alone_weights


def metrics_on_test(
    outcomes: Iterable[Outcome], fitted: Workbench
) -> dict[int, dict[str | None, float]]:
    """By trial, the metrics of finetunes on test data, and their scores (`SCORE`).

    Of a `FittedStudy`, and of models in its working folder; a score needs all tasks' metrics.
    """
    if not isinstance(fitted, FittedStudy):
        return {}
    definition = fitted.definition
    tested: dict[int, dict[str | None, float]] = {}
    alone: dict[str, float] = {}
    for outcome in outcomes:
        found = _evaluated(outcome.weights, fitted, outcome.repeat)
        tested[outcome.trial] = dict(found.items())
        if found.keys() == set(definition.names) and not definition.is_pareto:
            alone = alone or _alone(fitted)
            tested[outcome.trial][SCORE] = definition.goal(alone).score_of(found)
    return tested


def _alone(fitted: FittedStudy) -> dict[str, float]:
    """Each task's test metric when finetuned alone, for relative scores."""
    names = fitted.definition.names
    return {name: _evaluated(alone_weights(names)[name], fitted)[name] for name in names}


@models_turn()
def _evaluated(
    weights: Mapping[str, float], fitted: FittedStudy, repeat: int = 0
) -> dict[str, float]:
    """Test metrics of the finetune at `weights`; empty if its model isn't in this folder.

    The result is kept beside the model: test data are touched once for it.
    """
    settings = fitted.definition.finetuning.repeated(repeat)
    run = fitted.store.find(weights, settings)
    tasks = [task for task in fitted.tasks if task.test is not None]
    if run is None or not tasks:
        return {}
    path = fitted.store.test_path(run)
    if not path.exists():
        fitted.model.reset()
        fitted.model.load(run.parameters(), source=str(run.path))
        batches = task_batches(
            fitted.model, tasks, "test", batch_size=settings.evaluation_batch_size
        )
        evaluations = evaluate_tasks(fitted.model, tasks, batches, "test")
        write_json(path, {name: e.metric.value for name, e in evaluations.items()})
    found: dict[str, float] = json.loads(path.read_text())
    return found
