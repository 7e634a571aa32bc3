from __future__ import annotations

import optuna
import pytest
from study_helpers import study_by_hand

import optuna_merge as om
from optuna_merge.visualization import plot_baselines


def test_best_uniform_and_alone(trio: tuple[optuna.Study, om.FittedStudy]) -> None:
    study, fitted = trio
    best, uniform, alone = plot_baselines(study).data
    report = om.make_report(study, fitted, test=False)
    for bars, row in ((best, report["best"]), (uniform, report["baselines"]["uniform"])):
        assert list(bars.y) == [row["tasks"][name]["truth"] for name in bars.x]
    assert dict(zip(alone.x, alone.y)) == fitted.alone
    assert (best.name, uniform.name, alone.name) == ("best", "uniform", "alone")


def test_several_objectives_have_no_best_weights(
    pareto: tuple[optuna.Study, om.FittedStudy],
) -> None:
    assert [bars.name for bars in plot_baselines(pareto[0]).data] == ["uniform", "alone"]


def test_a_study_without_truths_says_so() -> None:
    with pytest.raises(ValueError, match="study 'by hand' has no finetuned trial yet"):
        plot_baselines(study_by_hand(("red", "blue"), 4, 0))
