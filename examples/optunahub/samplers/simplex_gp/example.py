"""The mixture of four ingredients that a bowl of soup likes best; two of them belong into it."""

from __future__ import annotations

import optuna
import optunahub


NAMES = ["water", "leek", "cream", "sugar"]
BEST = [0.7, 0.3, 0.0, 0.0]


def objective(trial: optuna.Trial) -> float:
    shares = [trial.suggest_float(name, 0, 1) for name in NAMES]
    return -sum((share / sum(shares) - best) ** 2 for share, best in zip(shares, BEST))


if __name__ == "__main__":
    module = optunahub.load_module(package="samplers/simplex_gp")
    study = optuna.create_study(
        direction="maximize", sampler=module.SimplexGPSampler(NAMES, seed=0)
    )
    study.optimize(objective, n_trials=30)
    print(study.best_params, study.best_value)
