"""Real studies for a browser to show."""

from __future__ import annotations

import optuna
import pytest
from study_helpers import fitted_toys, toy_study

import optuna_merge as om

EVIL = '<script>alert("x")</script>'
NAMES = ("red", "green", "blue")
EVIL_NAMES = ("red", EVIL, "blue & 'green' {{ 7 * 7 }}")


@pytest.fixture(scope="session")
def trio(tmp_path_factory: pytest.TempPathFactory) -> tuple[optuna.Study, om.FittedStudy]:
    """Three toy tasks."""
    fitted = fitted_toys(tmp_path_factory.mktemp("trio"), NAMES)
    return toy_study(fitted, n_trials=12, fraction=1.0, name=EVIL), fitted
