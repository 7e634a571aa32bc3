"""Real studies, one for each of what plots tell apart; nothing changes them."""

from __future__ import annotations

import optuna
import pytest
from study_helpers import fitted_toys, toy_study

import optuna_merge as om

TRIO = ("red", "green", "blue")


@pytest.fixture(scope="session")
def trio(tmp_path_factory: pytest.TempPathFactory) -> tuple[optuna.Study, om.FittedStudy]:
    """Three tasks, one score."""
    fitted = fitted_toys(tmp_path_factory.mktemp("trio"), TRIO)
    return toy_study(fitted, n_trials=24, fraction=1.0), fitted


@pytest.fixture(scope="session")
def duo(tmp_path_factory: pytest.TempPathFactory) -> tuple[optuna.Study, om.FittedStudy]:
    """Two tasks, one score."""
    fitted = fitted_toys(tmp_path_factory.mktemp("duo"), ("red", "blue"))
    return toy_study(fitted, n_trials=14, fraction=0.3), fitted


@pytest.fixture(scope="session")
def pareto(tmp_path_factory: pytest.TempPathFactory) -> tuple[optuna.Study, om.FittedStudy]:
    """Two tasks, an objective each."""
    fitted = fitted_toys(tmp_path_factory.mktemp("pareto"), ("red", "blue"), score="pareto")
    return toy_study(fitted, n_trials=10), fitted
