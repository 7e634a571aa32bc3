"""Which trials are one weighting."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from optuna_merge.trials import fail_and_requeue, lineage, retry_history


@pytest.mark.parametrize(
    ("user_attrs", "system_attrs", "expected"),
    [
        ({}, {}, 9),
        ({"promoted_from": 4}, {}, 4),
        ({"promoted_from": 0}, {}, 0),
        ({}, {"failed_trial": 2, "retry_history": [2, 5]}, 2),
        ({}, {"retry_history": []}, 9),
        ({"promoted_from": 4}, {"failed_trial": 6, "retry_history": [6, 7]}, 4),
    ],
)
def test_lineage(user_attrs: dict[str, Any], system_attrs: dict[str, Any], expected: int) -> None:
    trial = create_trial(value=1.0, user_attrs=user_attrs, system_attrs=system_attrs)
    trial.number = 9
    assert lineage(trial) == expected


def test_retries_of_a_copy_are_of_the_lineage_of_its_preview() -> None:
    study = optuna.create_study()
    study.add_trial(create_trial(state=TrialState.PRUNED))
    study.add_trial(create_trial(state=TrialState.RUNNING, user_attrs={"promoted_from": 0}))
    assert fail_and_requeue(study, 1)
    study.ask()
    assert fail_and_requeue(study, 2)
    assert [lineage(trial) for trial in study.trials] == [0, 0, 0, 0]
    assert [retry_history(trial) for trial in study.trials] == [[], [], [1], [1, 2]]
