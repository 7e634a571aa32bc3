"""Small real studies: toy tasks that are really finetuned, merged, previewed and promoted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
from helpers import toy_definition, toy_task

import optuna_merge as om


def fitted_toys(workdir: Path, names: tuple[str, ...], **changes: Any) -> om.FittedStudy:
    """Toy tasks of these names, fitted; `changes` are fields of the definition."""
    tasks = [toy_task(name, seed + 1, classes=2 + seed % 2) for seed, name in enumerate(names)]
    return om.fit(toy_definition(tasks, **changes), workdir, progress=False)


def toy_study(
    fitted: om.FittedStudy,
    *,
    n_trials: int,
    storage: str | None = None,
    name: str = "toys",
    fraction: float = 0.5,
) -> optuna.Study:
    """A study of them that ran `n_trials`, the baselines among them, and its queue to the end."""
    definition = fitted.definition
    study = om.open_study(
        name,
        om.create_storage(storage) if storage else optuna.storages.InMemoryStorage(),
        definition.directions,
        sampler=om.PreviewSampler(
            definition.names,
            score=None if definition.is_pareto else fitted.scores,
            constraints=fitted.constraints,
            seed=0,
        ),
        pruner=om.PromotionPruner(
            fraction=fraction,
            warmup=2,
            score=None if definition.is_pareto else fitted.scores,
            constraints=fitted.constraints,
            refinements=definition.refinement_steps,
            seed=0,
        ),
    )
    om.prepare_study(study, fitted)
    objective = om.Objective(fitted, progress=False)
    study.optimize(objective, n_trials=n_trials)
    while study.get_trials(states=[optuna.trial.TrialState.WAITING], deepcopy=False):
        study.optimize(objective, n_trials=1)
    return study
