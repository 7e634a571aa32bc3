"""What sampler and pruner look for, as models see it."""

from __future__ import annotations

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial

from optuna_merge.surrogate import Aim
from optuna_merge.trials import TrialReader


def test_each_metric_has_its_own_sense_beside_the_score() -> None:
    study = optuna.create_study(direction="maximize")
    weights = {"w_loss": 0.5, "w_accuracy": 0.5}
    study.add_trial(
        create_trial(
            value=0.1,
            params=weights,
            distributions=dict.fromkeys(weights, FloatDistribution(0, 1)),
            user_attrs={"truth_loss": 2.0, "truth_accuracy": 0.8},
        )
    )
    history = TrialReader(("loss", "accuracy")).read(study.study_name, study.trials)

    def score(metrics: np.ndarray) -> np.ndarray:
        return metrics[..., 1] - metrics[..., 0]

    mixed = Aim((True,), score, greater_is_better=(False, True))
    assert [series.sign for series in mixed.metrics(history)] == [-1.0, 1.0]
    assert [series.sign for series in mixed.values(history)] == [1.0]
    plain = Aim((False,), score)
    assert [series.sign for series in plain.metrics(history)] == [-1.0, -1.0]
