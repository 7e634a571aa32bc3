from __future__ import annotations

import optuna
import pytest

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


def test_several_objectives_need_a_trial(pareto: tuple[optuna.Study, om.FittedStudy]) -> None:
    study, _ = pareto
    with pytest.raises(ValueError, match="several objectives; name a trial"):
        plot_baselines(study)
    number = study.best_trials[0].number
    assert plot_baselines(study, number).data[0].name == f"trial {number}"
    with pytest.raises(ValueError, match="trial 99 of study 'toys' is not finetuned"):
        plot_baselines(study, 99)
