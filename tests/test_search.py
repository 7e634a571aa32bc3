from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers import toy_columns, toy_definition, toy_model, toy_settings, toy_task, toy_tasks
from optuna.trial import TrialState, create_trial

from optuna_merge.definition import StudyDefinition
from optuna_merge.exceptions import DefinitionMismatchError
from optuna_merge.fitting import FittedStudy, fit
from optuna_merge.goals import Score
from optuna_merge.objective import Objective
from optuna_merge.search import (
    baseline_weights,
    differing_parts,
    duplicate_baseline,
    load_study,
    open_study,
    prepare_study,
)
from optuna_merge.trials import (
    BASELINE,
    DEFINITION,
    FINGERPRINT,
    REPEAT,
    finetune_steps,
    reference_point,
    task_names,
)


def fit_toy(workdir: Path, **changes: Any) -> FittedStudy:
    return fit(toy_definition(**changes), workdir, progress=False)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workdir")


@pytest.fixture(scope="module")
def fitted(workdir: Path) -> FittedStudy:
    return fit_toy(workdir)


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(study_name="text", direction="maximize")


def test_a_new_study_gets_the_definition_and_the_baselines(
    study: optuna.Study, fitted: FittedStudy
) -> None:
    prepare_study(study, fitted, second_seed=False)
    assert study.user_attrs[FINGERPRINT] == fitted.fingerprint
    assert json.loads(study.user_attrs[DEFINITION]) == json.loads(json.dumps(fitted.parts))
    assert study.user_attrs["tasks"] == ["red", "blue"]
    assert study.metric_names == ["score (mean)"]
    assert [trial.state for trial in study.trials] == [TrialState.WAITING] * 3
    enqueued = {
        trial.user_attrs[BASELINE]: trial.system_attrs["fixed_params"] for trial in study.trials
    }
    assert enqueued == {
        "uniform": {"w_red": 0.5, "w_blue": 0.5},
        "red": {"w_red": 1.0, "w_blue": 0.0},
        "blue": {"w_red": 0.0, "w_blue": 1.0},
    }


def test_preparing_again_changes_nothing(study: optuna.Study, fitted: FittedStudy) -> None:
    prepare_study(study, fitted, second_seed=False)
    before = [(t.number, t.user_attrs) for t in study.trials], study.user_attrs
    prepare_study(study, fitted, second_seed=False)
    assert ([(t.number, t.user_attrs) for t in study.trials], study.user_attrs) == before


def test_a_baseline_that_failed_is_enqueued_again(
    study: optuna.Study, fitted: FittedStudy
) -> None:
    prepare_study(study, fitted, second_seed=False)
    failed = study.ask()
    study.tell(failed, state=TrialState.FAIL)
    finished = study.ask()
    study.tell(finished, 0.5)
    prepare_study(study, fitted, second_seed=False)
    assert [t.user_attrs[BASELINE] for t in study.trials] == ["uniform", "red", "blue", "uniform"]


def test_an_interrupted_preparation_is_done_again(
    study: optuna.Study, fitted: FittedStudy
) -> None:
    study.set_user_attr(DEFINITION, json.dumps(fitted.parts))
    study.enqueue_trial({"w_red": 0.5, "w_blue": 0.5}, user_attrs={BASELINE: "uniform"})
    prepare_study(study, fitted, second_seed=False)
    assert study.user_attrs[FINGERPRINT] == fitted.fingerprint
    assert [t.user_attrs[BASELINE] for t in study.trials] == ["uniform", "red", "blue"]


def with_other_data() -> StudyDefinition:
    red = toy_tasks()[0]
    blue = toy_task("blue", 2, classes=3, train=toy_columns(24, 3, seed=9))
    return toy_definition((red, blue))


@pytest.mark.parametrize(
    "definition, message",
    [
        (
            lambda: toy_definition(finetuning=toy_settings(steps=8)),
            r"differs: anchor .*, finetuning\.steps \(7 → 8\), heads\.blue .*, posteriors\.red",
        ),
        (lambda: toy_definition(score="worst"), r"what differs: score \(mean → worst\)\. Take"),
        (with_other_data, r"posteriors\.blue \(\w{12}… → \w{12}…\), .*, task blue: data\. Take"),
        (
            lambda: toy_definition(model=toy_model(toy_tasks(), seed=1)),
            r"what differs: anchor .*, body\.hash \(",
        ),
        (
            lambda: toy_definition(toy_tasks()[:1]),
            r"tasks \(red, blue → red\)",
        ),
    ],
    ids=["settings", "score", "data", "body", "tasks"],
)
def test_another_definition_is_refused_by_its_parts(
    definition: Any, message: str, study: optuna.Study, fitted: FittedStudy, workdir: Path
) -> None:
    prepare_study(study, fitted, second_seed=False)
    other = fit(definition(), workdir, progress=False)
    before = study.user_attrs, len(study.trials)
    with pytest.raises(DefinitionMismatchError, match=message) as caught:
        prepare_study(study, other, second_seed=False)
    assert str(caught.value).startswith("study 'text' was made with another definition")
    assert (study.user_attrs, len(study.trials)) == before


def test_a_score_that_was_changed_under_its_name_is_refused(
    study: optuna.Study, fitted: FittedStudy, workdir: Path
) -> None:
    prepare_study(study, fitted, second_seed=False)
    study.optimize(Objective(fitted, progress=False), n_trials=1)
    prepare_study(study, fitted, second_seed=False)
    (found,) = study.get_trials(states=(TrialState.COMPLETE,))

    changed = fit_toy(workdir, score=Score("mean", lambda m, alone: sum(m.values()) / 3))
    assert changed.fingerprint == fitted.fingerprint, "functions are known by their names only"
    told = rf"trial 0 has the value {found.value:g}, and the score 'mean' of the metrics there is"
    with pytest.raises(DefinitionMismatchError, match=told):
        prepare_study(study, changed, second_seed=False)


def test_uniform_weights_are_enqueued_a_second_time(
    study: optuna.Study, fitted: FittedStudy
) -> None:
    prepare_study(study, fitted, second_seed=False)  # as studies were made before
    for _ in range(2):
        prepare_study(study, fitted)
    *_, second = study.trials
    assert len(study.trials) == 4
    assert second.user_attrs == {BASELINE: "uniform", REPEAT: 1}
    assert second.system_attrs["fixed_params"] == {"w_red": 0.5, "w_blue": 0.5}
    study.enqueue_trial({"w_red": 0.5, "w_blue": 0.5}, user_attrs=second.user_attrs)
    trials = study.get_trials()
    assert [duplicate_baseline(trials, t) for t in trials] == [None] * 4 + [3]


def test_one_task_alone_is_finetuned_once(tmp_path: Path) -> None:
    fitted = fit(toy_definition([toy_task("red", 1)]), tmp_path, progress=False)
    study = optuna.create_study(direction="maximize")
    prepare_study(study, fitted)
    assert [t.user_attrs for t in study.trials] == [{BASELINE: "uniform"}]


def test_another_direction_is_refused(fitted: FittedStudy, workdir: Path) -> None:
    storage = optuna.storages.InMemoryStorage()
    study = open_study("text", storage, "minimize")
    assert open_study("text", storage, "minimize").study_name == study.study_name
    message = re.escape(
        "study 'text' has direction minimize, but the definition's score is to be maximized; make "
        "a study of another name: optuna create-study --study-name ... --direction maximize"
    )
    with pytest.raises(DefinitionMismatchError, match=message):
        open_study("text", storage, "maximize")
    with pytest.raises(DefinitionMismatchError, match=message):
        prepare_study(study, fitted, second_seed=False)
    assert study.user_attrs == {} and study.trials == []
    regret = Score("regret", lambda metrics, alone: -metrics["red"], maximize=False)
    prepare_study(study, fit_toy(workdir, score=regret), second_seed=False)
    assert len(study.trials) == 3


def test_several_directions_are_refused(fitted: FittedStudy) -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    with pytest.raises(DefinitionMismatchError, match="has direction maximize, minimize, but"):
        prepare_study(study, fitted, second_seed=False)


def test_a_pareto_study_has_an_objective_per_task(tmp_path: Path) -> None:
    fitted = fit_toy(tmp_path, score="pareto")
    storage = optuna.storages.InMemoryStorage()
    study = open_study("front", storage, fitted.definition.directions)
    prepare_study(study, fitted, second_seed=False)
    assert study.metric_names == ["red", "blue"]
    point = reference_point(study, ["blue", "red"])
    assert point is not None
    assert point.tolist() == [fitted.reference_point[t] for t in ("blue", "red")]
    worst = {
        t: min(r.evaluations[t].metric.value for r in fitted.runs.values())
        for t in ("red", "blue")
    }
    assert all(fitted.reference_point[t] < worst[t] for t in worst)
    assert finetune_steps(study) == 7
    message = re.escape(
        "the definition's objectives are to maximize, maximize; make a study of an"
    )
    single = optuna.create_study(direction="maximize")
    with pytest.raises(DefinitionMismatchError, match=message):
        prepare_study(single, fitted, second_seed=False)


def test_what_a_study_of_somebody_else_does_not_say() -> None:
    study = optuna.create_study(directions=["maximize"] * 2)
    assert reference_point(study, ["a", "b"]) is None
    study.set_user_attr("reference_point", {"a": 1.0})
    assert reference_point(study, ["a", "b"]) is None
    assert finetune_steps(study) is None


def test_a_study_of_something_else_is_refused(study: optuna.Study, fitted: FittedStudy) -> None:
    study.add_trial(create_trial(value=1.0))
    with pytest.raises(DefinitionMismatchError, match=r"study 'text' has trials but no optuna_me"):
        prepare_study(study, fitted, second_seed=False)
    assert study.user_attrs == {} and len(study.trials) == 1


def test_baselines_are_uniform_weights_and_each_task_alone() -> None:
    assert baseline_weights(["a"]) == {"uniform": {"a": 1.0}}
    assert baseline_weights(["a", "b"]) == {
        "uniform": {"a": 0.5, "b": 0.5},
        "a": {"a": 1.0, "b": 0.0},
        "b": {"a": 0.0, "b": 1.0},
    }


def test_the_later_one_of_two_equal_baselines_is_superfluous(study: optuna.Study) -> None:
    for name, state in [
        ("uniform", TrialState.FAIL),
        ("uniform", TrialState.RUNNING),
        ("red", TrialState.WAITING),
        ("uniform", TrialState.WAITING),
        (None, TrialState.WAITING),
    ]:
        attrs = {} if name is None else {BASELINE: name}
        study.add_trial(create_trial(state=state, user_attrs=attrs))
    trials = study.trials
    found = [duplicate_baseline(trials, trial) for trial in trials]
    assert found == [None, None, None, 1, None]


@pytest.mark.parametrize(
    "old, new, expected",
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1, "b": 2}, {"a": 3, "b": 2}, ["a (1 → 3)"]),
        ({"a": {"x": 1, "y": 2}}, {"a": {"x": 1, "y": 3}}, ["a.y (2 → 3)"]),
        ({}, {"a": 1}, ["a (None → 1)"]),
        ({"a": "f" * 64}, {"a": "0" * 64}, ["a (ffffffffffff… → 000000000000…)"]),
        (
            {"tasks": [{"name": "red", "data": "x", "loss": "l"}]},
            {"tasks": [{"name": "red", "data": "y", "loss": "m"}]},
            ["task red: data", "task red: loss"],
        ),
        (
            {"tasks": [{"name": "red"}, {"name": "blue"}]},
            {"tasks": [{"name": "blue"}, {"name": "red"}]},
            ["tasks (red, blue → blue, red)"],
        ),
        (
            {"body": {"hash": "x", "seed": 0}, "tasks": [{"name": "red"}]},
            {"body": {"hash": "y", "seed": 1}, "tasks": [{"name": "blue"}]},
            ["body.seed (0 → 1)", "tasks (red → blue)"],
        ),
    ],
)
def test_differences_are_named(
    old: dict[str, Any], new: dict[str, Any], expected: list[str]
) -> None:
    assert differing_parts(old, new) == expected


def test_the_tasks_of_a_study_are_listed_or_those_of_its_trials() -> None:
    study = optuna.create_study()
    assert task_names(study) == ()
    trial = study.ask({f"w_{t}": optuna.distributions.FloatDistribution(0, 1) for t in "ba"})
    study.tell(trial, 1.0)
    assert task_names(study) == ("b", "a")
    study.set_user_attr("tasks", ["a", "b"])
    assert task_names(study) == ("a", "b")
    study.set_user_attr("tasks", ["something", "else"])
    assert task_names(study) == ("b", "a")


def test_a_study_that_does_not_exist_is_not_made() -> None:
    storage = optuna.storages.InMemoryStorage()
    with pytest.raises(ValueError, match="no study 'mine' in this storage; there are: none"):
        load_study("mine", storage)
    optuna.create_study(study_name="other", storage=storage)
    with pytest.raises(ValueError, match="there are: other"):
        load_study("mine", storage)
    assert load_study("other", storage).study_name == "other"
