from __future__ import annotations

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

import optuna_merge as om
from optuna_merge.visualization import plot_cost


@pytest.mark.parametrize("kind", ["trio", "duo"])
def test_the_line_ends_at_the_reports_sum_and_at_the_best(
    kind: str, request: pytest.FixtureRequest
) -> None:
    study, fitted = request.getfixturevalue(kind)
    best, promoted, baselines = plot_cost(study).data
    cost = om.make_report(study, fitted, test=False)["cost"]
    total = cost["task_run_steps"] + cost["finetune_steps"]
    assert best.x[0] > cost["task_run_steps"], "the task runs come before"
    assert max(best.x) == total
    assert best.y[-1] == study.best_value == max(promoted.y + baselines.y)
    assert list(best.y) == sorted(best.y)
    assert "trial 0 uniform" in baselines.text


def test_of_several_objectives_it_is_the_hypervolume(
    pareto: tuple[optuna.Study, om.FittedStudy],
) -> None:
    study, fitted = pareto
    best = plot_cost(study).data[0]
    expected = om.make_report(study, fitted, test=False)["front"]["hypervolume"]
    assert best.y[-1] == pytest.approx(expected)
    assert best.name == "hypervolume so far"


def test_a_study_without_truths_says_so() -> None:
    study = optuna.create_study(study_name="s")
    trial = study.ask({"w_a": FloatDistribution(0, 1)})
    study.tell(trial, state=TrialState.PRUNED)
    with pytest.raises(ValueError, match="no finetuned trial yet"):
        plot_cost(study)
