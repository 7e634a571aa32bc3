"""What is read from a study's trials, against the trials and against the report."""

from __future__ import annotations

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from study_helpers import fitted_toys, toy_study

import optuna_merge as om
from optuna_merge.trials import SCORE, read_study, task_directions


@pytest.mark.parametrize("changes", [{}, {"score": "pareto"}])
def test_outcomes_have_the_numbers_of_the_report(
    tmp_path_factory: pytest.TempPathFactory, changes: dict
) -> None:
    fitted = fitted_toys(tmp_path_factory.mktemp("work"), ("red", "blue"), **changes)
    study = toy_study(fitted, n_trials=14, fraction=0.5)
    report = om.make_report(study, fitted, test=False)
    findings = read_study(study)
    outcomes, best = findings.outcomes, findings.best
    assert sum(o.steps for o in outcomes) == report["cost"]["finetune_steps"]
    assert findings.task_run_steps == report["cost"]["task_run_steps"]
    assert sum(o.is_truth for o in outcomes) == report["counts"]["truths"]
    assert sum(o.kind == "promoted" for o in outcomes) == report["counts"]["promoted"] > 0
    assert {o.baseline for o in outcomes} == {None, "uniform", "red", "blue"}
    weightings = [tuple(o.weights.values()) for o in outcomes]
    assert len(weightings) == len(set(weightings)), "copies are one with what they copy"
    if "score" in changes:
        assert best is None
    else:
        assert best is not None and best.trial == study.best_trial.number


def trial(number: int, value: float | None, constraint: float = 0.0) -> optuna.trial.FrozenTrial:
    return create_trial(
        state=TrialState.PRUNED if value is None else TrialState.COMPLETE,
        value=value,
        params={"w_a": 0.3 + 0.1 * (number - 2), "w_b": 0.9},
        distributions={f"w_{n}": FloatDistribution(0, 1) for n in "ab"},
        intermediate_values={0: 0.1 * number, 5: 0.2},
        user_attrs={"preview_a": 0.5, "preview_b": None},
        constraints={"c": constraint},
    )


def test_the_best_is_the_best_feasible_one_in_the_studys_direction() -> None:
    study = optuna.create_study(direction="minimize")
    for number, (value, constraint) in enumerate([(0.3, 0), (0.1, 1), (0.2, 0), (0.2, 0)]):
        study.add_trial(trial(number, value, constraint))
    study.add_trial(trial(4, None))
    findings = read_study(study)
    outcomes, best = findings.outcomes, findings.best
    assert [o.feasible for o in outcomes[:4]] == [True, False, True, True]
    assert best is not None and best.trial == 2 == study.best_trial.number
    assert best.weights == {"a": 0.25, "b": 0.75}  # canonical, though no attribute tells them
    assert best.previews == {"a": 0.5, "b": None}
    assert outcomes[4].kind == "preview" and outcomes[4].truth is None
    assert task_directions(study, ("a", "b")) == {"a": False, "b": False}


def test_a_study_without_weights_says_so() -> None:
    study = optuna.create_study(study_name="empty")
    with pytest.raises(ValueError, match="study 'empty' has no trial with task weights yet"):
        read_study(study)


def test_weights_that_were_finetuned_several_times_count_with_their_mean() -> None:
    study = optuna.create_study(direction="maximize")
    for number, value, repeat in ((2, 0.5, 0), (1, 0.4, 0), (2, 0.2, 1), (1, 0.4, 1)):
        of = trial(number, value)
        of.user_attrs["repeat"] = repeat
        study.add_trial(of)
    again = trial(1, 0.4)  # the finetune of trial 1 was found finished
    again.user_attrs |= {"repeat": 0, "truth_reused": True}
    study.add_trial(again)
    findings = read_study(study)
    assert [[o.trial for o in of.finetunes] for of in findings.weightings] == [[0, 2], [1, 3]]
    assert findings.weightings[0].mean(SCORE) == pytest.approx(0.35)
    assert findings.best is not None and findings.best.trial == 1
    assert findings.outcomes[2].label == "trial 2 second seed"
