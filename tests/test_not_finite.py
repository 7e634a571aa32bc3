"""Metrics, scores and curvature that are NaN or infinite: nothing is built on them, silently."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from helpers import files_below, toy_definition, toy_task
from optuna.trial import TrialState
from torch import Tensor

import optuna_merge as om
from optuna_merge.definition import PosteriorSettings
from optuna_merge.exceptions import NotFiniteError
from optuna_merge.tasks import Loss, Measurement, Metric, Task, cross_entropy

NOT_FINITE = [math.nan, math.inf, -math.inf]


class Picky:
    """Accuracy at first; the given value in all calls but the first `sound` ones."""

    def __init__(self, value: float) -> None:
        self._value = value
        self.sound = 10**9

    def __call__(self, outputs: Tensor, labels: Tensor) -> Measurement:
        self.sound -= 1
        right = (outputs.argmax(1) == labels).double().mean()
        return Measurement(float(right) if self.sound >= 0 else self._value, 0.1)


def tasks_with(picky: Picky) -> tuple[Task, Task]:
    """The second task has the metric."""
    return toy_task("red", 1), toy_task("blue", 2, metrics=(Metric("picky", picky),))


def made_study(fitted: om.FittedStudy) -> optuna.Study:
    study = optuna.create_study(
        direction=fitted.definition.direction, sampler=optuna.samplers.RandomSampler(seed=0)
    )
    om.prepare_study(study, fitted, second_seed=False)
    return study


@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_tasks_own_metric_is_an_error_before_anything_is_made_of_its_run(
    tmp_path: Path, value: float
) -> None:
    picky = Picky(value)
    picky.sound = 0
    blue, red = tasks_with(picky)[::-1]
    told = rf"task 'blue': the metric 'picky' of its own finetune is {value:g} on validation data"
    for _ in range(2):  # also of a run that is found
        with pytest.raises(NotFiniteError, match=told):
            om.fit(toy_definition((blue, red)), tmp_path, progress=False)
        runs = [path for path in files_below(tmp_path) if "model.safetensors" in str(path)]
        assert len(runs) == 1, "the other task is not trained"
        assert not (tmp_path / "posteriors").exists()


@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_preview_ends_as_failed_with_its_reason(tmp_path: Path, value: float) -> None:
    picky = Picky(value)
    fitted = om.fit(toy_definition(tasks_with(picky)), tmp_path, progress=False)
    study, objective = made_study(fitted), om.Objective(fitted, progress=False)
    study.optimize(objective, n_trials=3)  # the baselines
    picky.sound = 0
    study.optimize(objective, n_trials=1)
    picky.sound = 10**9
    study.optimize(objective, n_trials=1)
    told = f"task 'blue': the metric 'picky' of the merge is {value:g} on validation data"
    failed, sound = study.trials[3:]
    assert failed.state == TrialState.FAIL
    assert told in failed.user_attrs["failure"]
    assert not failed.intermediate_values
    assert "preview_red" not in failed.user_attrs
    assert sound.state == TrialState.COMPLETE

    text = om.format_report(om.make_report(study, fitted))
    assert "Given up after 1 try: " in text
    assert f"(trial 3): {told}" in text


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("score", ["mean", "pareto"])
def test_a_baseline_is_finetuned_without_preview(tmp_path: Path, score: str, value: float) -> None:
    picky = Picky(value)
    definition = toy_definition(tasks_with(picky), score=score)
    fitted = om.fit(definition, tmp_path, progress=False)
    study = optuna.create_study(
        directions=definition.directions,
        sampler=om.PreviewSampler(fitted.names, seed=0),
        pruner=om.PromotionPruner(fraction=0.5, warmup=2, seed=0),
    )
    om.prepare_study(study, fitted, second_seed=False)
    objective = om.Objective(fitted, progress=False)
    picky.sound = 0
    study.optimize(objective, n_trials=1)  # its finetune, the anchor, is found
    picky.sound = 10**9
    study.optimize(objective, n_trials=8)
    uniform = study.trials[0]
    assert uniform.state == TrialState.COMPLETE
    assert "preview_blue" not in uniform.user_attrs
    assert 0 not in uniform.intermediate_values
    assert "failure" not in uniform.user_attrs

    report = om.make_report(study, fitted)
    assert not report["failures"]
    assert report["counts"]["baselines"] == 3
    assert om.format_report(report)


@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_truth_ends_as_failed_with_its_reason_and_the_study_goes_on(
    tmp_path: Path, value: float
) -> None:
    picky = Picky(value)
    plain = om.PreviewSettings(anchor="none")  # no finetune before the study
    fitted = om.fit(toy_definition(tasks_with(picky), preview=plain), tmp_path, progress=False)
    study, objective = made_study(fitted), om.Objective(fitted, progress=False)
    picky.sound = 1  # the preview
    study.optimize(objective, n_trials=1)
    picky.sound = 10**9
    study.optimize(objective, n_trials=2)
    uniform, red, blue = study.trials
    told = f"task 'blue': the metric 'picky' of the finetune is {value:g} on validation data"
    assert uniform.state == TrialState.FAIL
    assert told in uniform.user_attrs["failure"]
    assert "truth_red" not in uniform.user_attrs
    assert uniform.user_attrs["truth_seconds"] > 0
    assert [red.state, blue.state] == [TrialState.COMPLETE] * 2
    assert f"uniform (trial 0): {told}" in om.format_report(om.make_report(study, fitted))


@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_rung_on_the_way_may_have_no_score(tmp_path: Path, value: float) -> None:
    """Of early outputs that are all alike some metrics have no value."""
    sound = {"at": -1}

    def score(metrics: Mapping[str, float]) -> float:
        sound["at"] -= 1
        return value if sound["at"] == 0 else 1.0

    fitted = om.fit(toy_definition(score=score), tmp_path, progress=False)
    study = made_study(fitted)
    sound["at"] = 2  # the preview's comes first
    study.optimize(om.Objective(fitted, progress=False), n_trials=1)
    uniform = study.trials[0]
    assert uniform.state == TrialState.COMPLETE
    reported = uniform.intermediate_values
    assert sorted(reported) == [0, 3, 5, 7]
    assert [math.isfinite(reported[step]) for step in sorted(reported)] == [
        True,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_score_of_finite_metrics_too(tmp_path: Path, value: float) -> None:
    sound = {"left": 1}

    def score(metrics: Mapping[str, float]) -> float:
        sound["left"] -= 1
        return 1.0 if sound["left"] >= 0 else value

    fitted = om.fit(toy_definition(score=score), tmp_path, progress=False)
    sound["left"] = 0
    study = made_study(fitted)
    study.optimize(om.Objective(fitted, progress=False), n_trials=1)
    assert study.trials[0].state == TrialState.FAIL
    told = f"the score of the finetune is {value:g}, of the metrics {{'red': "
    assert told in study.trials[0].user_attrs["failure"]


def test_a_curvature_is_named_with_its_task_and_not_kept(tmp_path: Path) -> None:
    def root(outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs[:, 0] * 0).sqrt()  # zero, of infinite slope

    loss = Loss("cross_entropy", cross_entropy.function, for_curvature=root)
    tasks = (toy_task("red", 1), toy_task("blue", 2, loss=loss))
    with pytest.raises(NotFiniteError, match=r"task 'blue': the curvature .* is nan in the mean"):
        om.fit(toy_definition(tasks), tmp_path, progress=False)
    kept = [path.name for path in (tmp_path / "posteriors").glob("*.safetensors")]
    assert [name.split("-")[:2] for name in kept] == [["curvature", "red"]]


def test_no_damping_is_chosen_among_merges_that_all_overflow(tmp_path: Path) -> None:
    calls = {"left": 0}

    def function(outputs: Tensor, labels: Tensor) -> Tensor:
        calls["left"] -= 1
        return cross_entropy(outputs, labels) * (math.inf if calls["left"] >= 0 else 1.0)

    loss = Loss("infinite later", function, cross_entropy.sample_labels, classification=True)

    def definition(**changes: Any) -> om.StudyDefinition:
        tasks = (toy_task("red", 1, loss=loss), toy_task("blue", 2, loss=loss))
        settings = PosteriorSettings(examples=16, chunk_size=8, **changes)
        return toy_definition(tasks, posterior=settings)

    om.fit(definition(damping=1.0), tmp_path, progress=False)  # leaves only the sweep to do
    calls["left"] = 10**6
    with pytest.raises(NotFiniteError, match=r"no merge of the tasks \['red', 'blue'\] has a fin"):
        om.fit(definition(), tmp_path, progress=False)
    assert not list((tmp_path / "posteriors").glob("damping-*.json"))
    calls["left"] = 0
    assert om.fit(definition(), tmp_path, progress=False).damping is not None


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("trainable", ["all", om.models.LastLayers(1)])
def test_a_body_with_such_a_parameter_is_refused(value: float, trainable: Any) -> None:
    tasks = [toy_task("red")]
    body = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 8))
    options: dict[str, Any] = {"features": 8, "inputs": ["x"], "trainable": trainable}
    with torch.no_grad():
        body[0].weight.fill_(3e38)  # whose sum overflows
        om.models.from_module(body, tasks, **options)
        body[0].weight[3, 2] = value
    with pytest.raises(ValueError, match=r"1 of the 48 numbers of the parameter 'body.0.weight'"):
        om.models.from_module(body, tasks, **options)
