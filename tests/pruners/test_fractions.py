"""What fraction of the previews passes each gate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial

from optuna_merge.pruners import PromotionPruner
from optuna_merge.pruners._fractions import (
    ENOUGH,
    Row,
    equal_fractions,
    finished_ladders,
    measured_fractions,
    selection_gain,
)

Array = npt.NDArray[np.float64]


def chain(*trust: float) -> Array:
    """Correlations of rungs whose errors are made one after the other, the truth at the end."""
    path = np.array([*trust, 1.0])
    return np.asarray(np.minimum.outer(path, path) / np.maximum.outer(path, path))


def rows(n: int, *trust: float, seed: int = 0) -> tuple[Row, ...]:
    """Previews, refined previews and truths of exactly these correlations (not of ranks)."""
    made = np.random.default_rng(seed).standard_normal((n, len(trust) + 1))
    made -= made.mean(0)
    whitened = made @ np.linalg.inv(np.linalg.cholesky(made.T @ made / n)).T
    values = whitened @ np.linalg.cholesky(chain(*trust)).T
    return tuple(tuple(row) for row in values.tolist())


@pytest.mark.parametrize(
    ("trust", "passing"),
    [
        ((0.8,), (0.25,)),
        ((0.5, 0.9), (0.5, 0.25)),
        ((0.1, 0.9), (1.0, 0.05)),
        ((0.9, 0.95), (0.05, 0.05)),
        ((0.3, 0.6), (0.3, 0.1)),
        ((0.4, 0.6, 0.9), (0.5, 0.25, 0.125)),
    ],
)
def test_the_gain_is_that_of_selecting(
    trust: tuple[float, ...], passing: tuple[float, ...]
) -> None:
    correlations = chain(*trust)
    rng = np.random.default_rng(0)
    left = rng.multivariate_normal(np.zeros(len(correlations)), correlations, size=200_000)
    n = len(left)
    for gate, fraction in enumerate(passing):
        left = left[np.argsort(-left[:, gate])[: round(fraction * n)]]
    assert selection_gain(correlations, passing) == pytest.approx(left[:, -1].mean(), rel=0.05)


def passed(n: int, *trust: float, cost: float = 10.0, fraction: float = 0.25) -> float:
    return measured_fractions(fraction, rows(n, *trust), (cost, 100.0))[0]


def test_fractions_are_equal_until_the_last_rung_has_proved_itself() -> None:
    assert equal_fractions(0.125, 3) == pytest.approx((0.5, 0.25, 0.125))
    assert passed(ENOUGH - 1, 0.1, 0.9) == 0.5
    assert passed(40, 0.01, 0.02) == 0.5  # its interval includes zero
    assert measured_fractions(1.0, rows(40, 0.1, 0.9), (10.0, 100.0)) == (1.0, 1.0)
    assert measured_fractions(0.0, rows(40, 0.1, 0.9), (10.0, 100.0)) == (0.0, 0.0)


def test_true_previews_need_few_refinements_and_poor_ones_many() -> None:
    assert passed(100, 0.95, 0.97) < 0.35 < 0.45 < passed(100, 0.5, 0.95) < passed(100, 0.05, 0.95)
    assert passed(100, 0.05, 0.95) > 0.8
    # A rung that says no more than the one before it is not worth its steps.
    assert passed(100, 0.8, 0.8001) < 0.35


def test_dear_refinements_are_fewer_and_more_finetunes_say_more() -> None:
    assert passed(100, 0.3, 0.9, cost=50) < passed(100, 0.3, 0.9, cost=5)
    few, many = passed(10, 0.95, 0.97), passed(150, 0.95, 0.97)
    assert many < few < 0.5


def test_of_several_rungs_each_passes_no_more_than_the_one_before() -> None:
    for seed in range(20):
        trust = np.sort(np.random.default_rng(seed).uniform(0, 1, 3))
        found = measured_fractions(0.1, rows(50, *trust, seed=seed), (5.0, 15.0, 100.0))
        assert 1 >= found[0] >= found[1] >= found[2] == 0.1


def finished(weights: Sequence[float], values: dict[int, float], truth: float) -> FrozenTrial:
    return optuna.trial.create_trial(
        value=truth,
        params={f"w_{task}": w for task, w in zip("ab", weights)},
        distributions={f"w_{task}": FloatDistribution(0, 1) for task in "ab"},
        intermediate_values=values,
    )


def test_ladders_of_positive_weights_that_were_climbed_count() -> None:
    trials = [
        finished((0.5, 0.5), {0: 0.1, 3: 0.2, 9: 0.4}, 0.3),
        finished((1.0, 0.0), {0: 0.1, 3: 0.2}, 0.3),
        finished((0.2, 0.8), {0: 0.1}, 0.3),
        finished((0.2, 0.8), {0: float("nan"), 3: 0.2}, 0.3),
        finished((0.2, 0.8), {0: 0.5, 3: 0.6}, 0.7),
    ]
    assert finished_ladders(trials, (3,), ("a", "b")) == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    assert finished_ladders(trials[:1], (3,), ("a",)) == ()


def study_of(n: int, trust: tuple[float, ...], **options: Any) -> optuna.Study:
    study = optuna.create_study(
        direction="maximize",
        pruner=PromotionPruner(fraction=0.25, refinements=(10,), **options),
    )
    for index, (preview, refined, truth) in enumerate(rows(n, *trust)):
        w = (index + 1) / (n + 2)
        study.add_trial(finished((w, 1 - w), {0: preview, 10: refined}, truth))
    return study


def test_a_study_measures_by_the_steps_of_its_finetune() -> None:
    def of_previews(study: optuna.Study) -> float:
        assert isinstance(study.pruner, PromotionPruner)
        return study.pruner.preview_budget(study).fraction

    assert of_previews(study_of(60, (0.95, 0.97), finetune_steps=100)) < 0.4
    assert of_previews(study_of(60, (0.05, 0.95), finetune_steps=100)) > 0.7
    # Without them nothing is known of costs.
    assert of_previews(study_of(60, (0.05, 0.95))) == 0.5
    study = study_of(60, (0.05, 0.95))
    many = '{"finetuning": {"steps": 100, "batch_size": 8}, "refinement": {"batch_size": 80}}'
    study.set_user_attr("optuna_merge_definition", many)
    dear = of_previews(study)
    study.set_user_attr("optuna_merge_definition", '{"finetuning": {"steps": 100}}')
    assert dear < of_previews(study)
