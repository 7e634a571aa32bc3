"""What a study has cost: finetunes that failed have cost something, too, and each once."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from optuna_merge.trials import study_spending

DISTRIBUTIONS = {f"w_{name}": FloatDistribution(0, 1) for name in ("red", "blue")}


def trial(red: float, state: TrialState, seconds: float | None, **system: Any) -> FrozenTrial:
    return create_trial(
        state=state,
        value=0.5 if state == TrialState.COMPLETE else None,
        params={"w_red": red, "w_blue": 1 - red},
        distributions=DISTRIBUTIONS,
        user_attrs={} if seconds is None else {"truth_seconds": seconds},
        system_attrs=system,
    )


def test_failed_finetunes_count_once_each() -> None:
    study = optuna.create_study()
    study.add_trial(trial(0.5, TrialState.COMPLETE, 10.0))
    study.add_trial(trial(0.7, TrialState.FAIL, 4.0))
    retry = {"failed_trial": 1, "retry_history": [1]}
    study.add_trial(trial(0.7, TrialState.FAIL, 4.0, **retry))  # killed before its finetune
    study.add_trial(trial(0.7, TrialState.FAIL, 6.0, **retry))
    study.add_trial(trial(0.9, TrialState.FAIL, None))  # in its preview
    assert study_spending(study).finetunes == pytest.approx((10 + 4 + 6) / 10)
