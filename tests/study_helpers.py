"""Small real studies: toy tasks that are really finetuned, merged, previewed and promoted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna
from helpers import toy_definition, toy_task
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

import optuna_merge as om
from optuna_merge.search import baseline_weights
from optuna_merge.surrogate import startup_design


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
            score=None if definition.is_pareto else fitted.goal.scores,
            constraints=fitted.goal.limits,
            seed=0,
        ),
        pruner=om.PromotionPruner(
            fraction=fraction,
            warmup=2,
            score=None if definition.is_pareto else fitted.goal.scores,
            constraints=fitted.goal.limits,
            seed=0,
        ),
    )
    om.prepare_study(study, fitted, second_seed=False)
    objective = om.Objective(fitted, progress=False)
    study.optimize(objective, n_trials=n_trials)
    while study.get_trials(states=[optuna.trial.TrialState.WAITING], deepcopy=False):
        study.optimize(objective, n_trials=1)
    return study


def study_by_hand(
    names: tuple[str, ...],
    n_previews: int,
    n_truths: int,
    *,
    name: str = "by hand",
    direction: str = "maximize",
    storage: str | None = None,
) -> optuna.Study:
    """A study of smooth metrics with noise, for sizes and names that real tasks can't have."""
    rng = np.random.default_rng(0)
    weights = startup_design(len(names), n_previews, seed=0)
    metrics = 0.6 + 0.3 * np.sqrt(weights + 0.02) - 0.1 * np.square(weights - 1 / len(names))
    previews = metrics - 0.05 + 0.005 * rng.normal(size=metrics.shape)
    truths = metrics + 0.01 * np.sin(9 * weights)
    baselines = list(baseline_weights(names))

    def trial(i: int) -> FrozenTrial:
        done = i < n_truths
        attrs: dict[str, Any] = {"baseline": baselines[i]} if i < len(baselines) else {}
        rows = {"weight": weights, "preview": previews} | ({"truth": truths} if done else {})
        for kind, of in rows.items():
            attrs |= {f"{kind}_{n}": float(v) for n, v in zip(names, of[i])}
        return create_trial(
            state=TrialState.COMPLETE if done else TrialState.PRUNED,
            value=float(truths[i].mean()) if done else None,
            params={f"w_{n}": float(w) for n, w in zip(names, weights[i])},
            distributions={f"w_{n}": FloatDistribution(0, 1) for n in names},
            intermediate_values={0: float(previews[i].mean())}
            | ({60: float(truths[i].mean())} if done else {}),
            user_attrs=attrs,
        )

    study = optuna.create_study(study_name=name, direction=direction, storage=storage)
    study.add_trials([trial(i) for i in range(n_previews)])
    return study
