"""Sixty cheap previews of a model, and full runs of the fifteen best ones."""

from __future__ import annotations

import optuna
import optunahub


def preview(x: float, y: float) -> float:
    """Costs little, and is right about much."""
    return -((x - 0.6) ** 2) - (y - 0.4) ** 2


def full_run(x: float, y: float) -> float:
    """Costs much."""
    return -((x - 0.7) ** 2) - (y - 0.3) ** 2


def objective(trial: optuna.Trial) -> float:
    x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
    if "promoted_from" not in trial.user_attrs:
        trial.report(preview(x, y), step=0)
    if trial.should_prune():
        raise optuna.TrialPruned
    return full_run(x, y)


if __name__ == "__main__":
    module = optunahub.load_module(package="pruners/promotion")
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=module.PromotionPruner(fraction=0.25),
    )
    study.optimize(objective, n_trials=75)
    complete = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    print(f"{len(complete)} full runs; the best: {study.best_params}, {study.best_value}")
