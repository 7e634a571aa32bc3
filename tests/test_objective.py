"""The objective under plain Optuna: previews, promotions, baselines, failures, a dashboard."""

from __future__ import annotations

import json
import math
import wsgiref.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers import failing_loss, toy_definition, toy_settings, toy_task, toy_tasks
from optuna.trial import TrialState

import optuna_merge as om
import optuna_merge.exceptions
from optuna_merge.exceptions import DefinitionMismatchError
from optuna_merge.fitting import DefinedFinetunes
from optuna_merge.trials import (
    SCORE,
    TrialReader,
    fail_and_requeue,
    read_study,
    suggest_weights,
    weight_params,
)
from optuna_merge.workers import Collector


def made_study(fitted: om.FittedStudy, **options: Any) -> optuna.Study:
    definition = fitted.definition
    options = {"sampler": optuna.samplers.RandomSampler(seed=0)} | options
    study = optuna.create_study(direction=definition.direction, **options)
    om.prepare_study(study, fitted, second_seed=False)
    return study


@pytest.fixture
def fitted(tmp_path: Path) -> om.FittedStudy:
    return om.fit(toy_definition(), tmp_path / "work", progress=False)


def test_runs_under_plain_optimize(fitted: om.FittedStudy) -> None:
    study = made_study(fitted, pruner=om.PromotionPruner(fraction=0.25, warmup=4))
    study.optimize(om.Objective(fitted, progress=False), n_trials=25)

    trials = study.trials
    assert [t.user_attrs.get("baseline") for t in trials[:3]] == ["uniform", "red", "blue"]
    assert all(t.state == TrialState.COMPLETE for t in trials[:3])
    copies = [t for t in trials if "promoted_from" in t.user_attrs]
    own = [t for t in trials[3:] if "promoted_from" not in t.user_attrs]
    promoted = [t for t in trials[3:] if t.state == TrialState.COMPLETE]
    assert 1 <= len(promoted) <= 0.25 * len(own)
    assert all("promoted_from" in t.user_attrs for t in promoted), "no preview goes on itself"
    for trial in trials:
        attrs = trial.user_attrs
        assert math.isclose(attrs["weight_red"] + attrs["weight_blue"], 1.0)
        assert attrs["preview_red"] is not None
        assert attrs["preview_seconds"] > 0
        mean = (attrs["preview_red"] + attrs["preview_blue"]) / 2
        assert trial.intermediate_values[0] == pytest.approx(mean)
        if trial.state == TrialState.COMPLETE:
            assert sorted(trial.intermediate_values) == [0, 3, 5, 7]
            assert trial.value == trial.intermediate_values[7]
            assert trial.value == pytest.approx((attrs["truth_red"] + attrs["truth_blue"]) / 2)
        else:
            assert trial.state == TrialState.PRUNED
            assert sorted(trial.intermediate_values) == [0]
    for copy in copies:
        assert copy.user_attrs["promotion"] == "begun"
        source = trials[copy.user_attrs["promoted_from"]]
        assert source.state == TrialState.PRUNED
        for key in ("weight_red", "preview_red", "preview_blue_se"):
            assert copy.user_attrs[key] == source.user_attrs[key]


def test_a_task_alone_reuses_its_own_run(fitted: om.FittedStudy) -> None:
    study = made_study(fitted)
    study.optimize(om.Objective(fitted, progress=False), n_trials=3)
    uniform, red, blue = study.trials
    assert not uniform.user_attrs["truth_reused"]
    for trial, name in ((red, "red"), (blue, "blue")):
        assert trial.user_attrs["truth_reused"]
        assert trial.user_attrs[f"truth_{name}"] == fitted.alone[name]
        # All of the body comes from that one task: preview and truth agree exactly on it.
        assert trial.user_attrs[f"preview_{name}"] == fitted.alone[name]


def test_a_repeat_is_the_same_finetune_with_another_seed(
    fitted: om.FittedStudy, tmp_path: Path
) -> None:
    study = optuna.create_study(direction="maximize")
    om.prepare_study(study, fitted)
    objective = om.Objective(fitted, progress=False)
    study.optimize(objective, n_trials=4)
    first, _, _, second = study.trials
    assert second.user_attrs["repeat"] == 1
    assert second.state == TrialState.COMPLETE and not second.user_attrs["truth_reused"]
    assert second.user_attrs["preview_taken_from"] == first.number
    settings = fitted.definition.finetuning
    for trial, seed in ((first, settings.seed), (second, settings.seed + 1)):
        run = fitted.store.find({"red": 0.5, "blue": 0.5}, replace(settings, seed=seed))
        assert run is not None
        assert run.evaluations["red"].metric.value == trial.user_attrs["truth_red"]
    report = om.make_report(study, fitted)
    assert list(report["baselines"]) == ["uniform", "red", "blue", "uniform, second seed"]
    assert report["counts"]["baselines"] == 4 and report["counts"]["previews"] == 3
    findings = read_study(study)
    assert findings.uniform is not None and findings.uniform.trial == first.number
    mean = (first.value + second.value) / 2
    assert findings.repeats(findings.uniform).mean(SCORE) == pytest.approx(mean)
    assert findings.best is not None and not findings.best.repeat
    again = om.fit(fitted.definition, tmp_path / "work", progress=False)
    finetunes = DefinedFinetunes(again.definition, tmp_path / "work")
    assert Collector(study, finetunes, keep_best=1).find() == []


def test_baselines_are_finetuned_whatever_the_pruner_says(fitted: om.FittedStudy) -> None:
    class PruneAll(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            return True

    study = made_study(fitted, pruner=PruneAll())
    study.optimize(om.Objective(fitted, progress=False), n_trials=4)
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.COMPLETE] * 3 + [TrialState.PRUNED]


def test_rungs_are_pruned_by_an_ordinary_pruner(fitted: om.FittedStudy) -> None:
    """With any other pruner a trial goes on from its preview to its finetune."""
    pruner = optuna.pruners.ThresholdPruner(lower=2.0, n_warmup_steps=1)
    study = made_study(fitted, pruner=pruner)
    study.optimize(om.Objective(fitted, progress=False), n_trials=4)
    last = study.trials[3]
    assert last.state == TrialState.PRUNED
    assert sorted(last.intermediate_values) == [0, 3]
    assert last.user_attrs["truth_seconds"] > 0
    report = om.make_report(study, fitted)
    assert report["cost"]["finetune_steps"] == 7 + 3  # uniform weights, and this one's first rung


def test_a_diverged_finetune_fails_with_its_reason_and_the_study_goes_on(tmp_path: Path) -> None:
    tasks = toy_tasks()
    merged = om.PreviewSettings(
        heads="merged", anchor="none"
    )  # previews that take no loss of training data
    fitted = om.fit(toy_definition(tasks, preview=merged), tmp_path, progress=False)
    loss = fitted.tasks[0].loss
    object.__setattr__(fitted.tasks[0], "loss", failing_loss(2, math.nan))
    study = made_study(fitted)
    study.optimize(om.Objective(fitted, progress=False), n_trials=2)
    uniform, red, _ = study.trials
    assert uniform.state == TrialState.FAIL
    assert "loss nan" in uniform.user_attrs["failure"]
    assert "step 1" in uniform.user_attrs["failure"]
    assert uniform.user_attrs["truth_seconds"] > 0, "it has cost something"
    assert red.state == TrialState.COMPLETE

    # It is tried again, with a preview of its own: models leave that of a failed trial out.
    object.__setattr__(fitted.tasks[0], "loss", loss)
    om.prepare_study(study, fitted, second_seed=False)
    study.optimize(om.Objective(fitted, progress=False), n_trials=2)
    again = study.trials[3]
    assert (again.user_attrs["baseline"], again.state) == ("uniform", TrialState.COMPLETE)
    assert "preview_taken_from" not in again.user_attrs
    history = TrialReader(fitted.names).read(study.study_name, study.get_trials())
    assert [0.5, 0.5] in history.score(1.0).preview_weights.tolist()


def test_a_second_baseline_of_one_name_fails_and_is_not_counted(fitted: om.FittedStudy) -> None:
    study = made_study(fitted)
    weights = weight_params({"red": 1, "blue": 1})
    study.enqueue_trial(weights, user_attrs={"baseline": "uniform"})
    study.optimize(om.Objective(fitted, progress=False), n_trials=4)
    assert study.trials[3].state == TrialState.FAIL
    assert study.trials[3].user_attrs["failure"] == "duplicate baseline: trial 0 has it"
    counts = read_study(study).counts
    assert (counts.failed, counts.baselines) == (0, 3), "nothing has gone wrong"
    assert "failed 0" in om.format_report(om.make_report(study, fitted))


def test_the_same_weights_are_previewed_once(fitted: om.FittedStudy) -> None:
    study = made_study(fitted, pruner=om.PromotionPruner(fraction=0.0))
    for _ in range(2):
        study.enqueue_trial({"w_red": 0.25, "w_blue": 0.75})
    study.enqueue_trial({"w_red": 0.2, "w_blue": 0.6})  # the same weights, written otherwise
    study.optimize(om.Objective(fitted, progress=False), n_trials=6)
    made, *taken = study.trials[3:]
    assert made.user_attrs["preview_seconds"] > 0
    for trial in taken:
        assert trial.user_attrs["preview_taken_from"] == made.number
        assert trial.intermediate_values == made.intermediate_values
        for key in ("weight_red", "preview_red", "preview_blue_se"):
            assert trial.user_attrs[key] == made.user_attrs[key]
    assert om.make_report(study, fitted)["counts"]["previews"] == 4


def test_preparing_again_enqueues_nothing(fitted: om.FittedStudy) -> None:
    study = made_study(fitted)
    om.prepare_study(study, fitted, second_seed=False)
    assert len(study.trials) == 3


def test_an_unprepared_study_is_refused(fitted: om.FittedStudy) -> None:
    study = optuna.create_study(direction="maximize")
    with pytest.raises(DefinitionMismatchError, match="prepare_study"):
        study.optimize(om.Objective(fitted, progress=False), n_trials=1)


def test_report_has_the_numbers_of_the_trials(fitted: om.FittedStudy) -> None:
    study = made_study(fitted, pruner=om.PromotionPruner(fraction=0.5, warmup=0))
    study.optimize(om.Objective(fitted, progress=False), n_trials=15)
    report = om.make_report(study, fitted)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["best"]["trial"] == study.best_trial.number
    assert report["best"]["score"]["truth"] == study.best_value
    assert list(report["baselines"]) == ["uniform", "red", "blue"]
    copies = sum("promoted_from" in trial.user_attrs for trial in study.trials)
    assert report["counts"]["previews"] == 15 - copies
    assert report["cost"]["task_run_steps"] == 14
    trained = [t for t in study.trials if t.state == TrialState.COMPLETE]
    trained = [t for t in trained if not t.user_attrs["truth_reused"]]
    assert report["cost"]["finetune_steps"] == 7 * len(trained)
    assert set(report["calibration"]["tasks"]) == {"red", "blue"}
    text = om.format_report(report)
    assert f"(trial {study.best_trial.number})" in text
    assert f"{study.best_value:.4f}" in text
    assert "preview    truth\n" in text, "nobody gave test data"


def test_report_of_few_truths_says_so(fitted: om.FittedStudy) -> None:
    study = made_study(fitted)
    assert "No truth yet" in om.format_report(om.make_report(study, fitted))
    study.optimize(om.Objective(fitted, progress=False), n_trials=3)
    report = om.make_report(study, fitted)
    assert report["calibration"]["score"]["spearman"] is None
    text = om.format_report(report)
    assert "too few truths" in text
    assert ("No weights beat uniform" in text) == (report["best"]["trial"] == 0)


def test_test_data_are_evaluated_once_for_a_model(tmp_path: Path) -> None:
    test = toy_task("other", 7).validation
    tasks = tuple(
        om.Task(t.name, t.train, t.validation, t.num_outputs, test=test) for t in toy_tasks()
    )
    fitted = om.fit(toy_definition(tasks), tmp_path, progress=False)
    study = made_study(fitted)
    study.optimize(om.Objective(fitted, progress=False), n_trials=3)
    report = om.make_report(study, fitted)
    assert report["best"]["tasks"]["red"]["test"] is not None
    assert "preview    truth     test\n" in om.format_report(report)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("test-*.json")}
    assert len(kept) == 3
    om.make_report(study, fitted)
    assert kept == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("test-*.json")}


def test_resumed_runs_count_only_what_is_missing(fitted: om.FittedStudy, tmp_path: Path) -> None:
    study = made_study(fitted, pruner=om.PromotionPruner(fraction=0.0))
    objective = om.Objective(fitted, progress=False)
    numbers: list[int] = []

    def interrupted(trial: optuna.Trial) -> float:
        numbers.append(trial.number)
        if len(numbers) == 6:
            suggest_weights(trial, ["red", "blue"])
            raise KeyboardInterrupt
        return objective(trial)

    with pytest.raises(KeyboardInterrupt):
        om.run_trials(study, interrupted, workdir=tmp_path, n_trials=9)
    assert sum(t.state == TrialState.WAITING for t in study.trials) == 1
    assert om.run_trials(study, objective, workdir=tmp_path, n_trials=9) == 9
    finished = [t for t in study.trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(finished) == 9
    assert study.trials[5].state == TrialState.FAIL
    # The interrupted trial's weights were not lost.
    again = [t for t in finished if t.params == study.trials[5].params]
    assert len(again) == 1
    # That run is done: the same call begins a new one.
    assert om.run_trials(study, objective, workdir=tmp_path, n_trials=2) == 2


def test_a_run_ends_when_every_trial_fails(fitted: om.FittedStudy, tmp_path: Path) -> None:
    study = made_study(fitted)

    def failing(trial: optuna.Trial) -> float:
        trial.set_user_attr("failure", "the disk is full")
        return math.nan

    with pytest.raises(om.exceptions.OptunaMergeError, match=r"10 trials in a row.*disk is full"):
        om.run_trials(study, failing, workdir=tmp_path, n_trials=3)


def test_a_trial_lost_after_its_last_step_does_not_end_the_worker(
    fitted: om.FittedStudy, tmp_path: Path
) -> None:
    study = made_study(fitted)
    objective = om.Objective(fitted, progress=False)

    def lost(trial: optuna.Trial) -> float:
        value = objective(trial)
        if trial.number == 0:
            assert fail_and_requeue(study, 0)  # as another worker does; this one is stopped here
        assert isinstance(value, float)
        return value

    assert om.run_trials(study, lost, workdir=tmp_path, n_trials=4) == 4
    assert study.trials[0].state == TrialState.FAIL
    again = next(t for t in study.trials if t.system_attrs.get("retry_history") == [0])
    assert again.user_attrs["baseline"] == study.trials[0].user_attrs["baseline"]


def test_timeout_starts_no_new_trial(fitted: om.FittedStudy, tmp_path: Path) -> None:
    study = made_study(fitted)
    objective = om.Objective(fitted, progress=False)
    assert om.run_trials(study, objective, workdir=tmp_path, n_trials=5, timeout=0.0) == 0


def test_the_dashboard_shows_the_study(fitted: om.FittedStudy, tmp_path: Path) -> None:
    from optuna_dashboard import wsgi

    storage = om.create_storage(f"sqlite:///{tmp_path}/study.db")
    study = made_study(fitted, storage=storage, study_name="toy")
    study.optimize(om.Objective(fitted, progress=False), n_trials=4)
    app = wsgi(storage)

    def get(path: str) -> Any:
        environ: dict[str, Any] = {"PATH_INFO": path, "REQUEST_METHOD": "GET"}
        wsgiref.util.setup_testing_defaults(environ)
        status: list[str] = []
        body = b"".join(app(environ, lambda s, headers, error=None: status.append(f"{s} {error}")))
        assert status[0].startswith("200"), status
        return json.loads(body)

    studies = get("/api/studies")["study_summaries"]
    assert [found["study_name"] for found in studies] == ["toy"]
    detail = get(f"/api/studies/{studies[0]['study_id']}")
    first = detail["trials"][0]
    assert first["intermediate_values"][0]["step"] == 0
    keys = {attr["key"] for attr in first["user_attrs"]}
    assert {"weight_red", "preview_red", "truth_red", "preview_seconds", "baseline"} <= keys
    assert detail["objective_names"] == ["score (mean)"]


def test_settings_are_shared_by_task_runs_and_truths(tmp_path: Path) -> None:
    definition = toy_definition(finetuning=toy_settings(steps=4, num_rungs=2))
    fitted = om.fit(definition, tmp_path, progress=False)
    assert {run.steps for run in fitted.runs.values()} == {4}
    study = made_study(fitted)
    study.optimize(om.Objective(fitted, progress=False), n_trials=1)
    assert sorted(study.trials[0].intermediate_values) == [0, 2, 4]


def searched(fitted: om.FittedStudy, n_trials: int) -> optuna.Study:
    definition = fitted.definition
    search: dict[str, Any] = {
        "score": None if definition.is_pareto else fitted.goal.scores,
        "constraints": fitted.goal.limits,
        "seed": 0,
    }
    study = om.open_study(
        "toy",
        optuna.storages.InMemoryStorage(),
        definition.directions,
        sampler=om.PreviewSampler(definition.names, **search),
        pruner=om.PromotionPruner(**search),
    )
    om.prepare_study(study, fitted, second_seed=False)
    study.optimize(om.Objective(fitted, progress=False), n_trials=n_trials)
    return study


def test_constraints_stand_on_every_trial(tmp_path: Path) -> None:
    fitted = om.fit(toy_definition(constraints=0.9), tmp_path, progress=False)
    study = searched(fitted, 14)
    limits = {f"{t}_of_alone_0.9": 0.9 * fitted.alone[t] for t in ("red", "blue")}
    for trial in study.trials:
        if trial.state == TrialState.WAITING:
            continue
        attrs = trial.user_attrs
        kind = "truth" if trial.state == TrialState.COMPLETE else "preview"
        expected = {
            name: limit - attrs[f"{kind}_{name.split('_')[0]}"] for name, limit in limits.items()
        }
        assert trial.constraints == pytest.approx(expected)
        assert {n: attrs[f"constraint_{n}"] for n in limits} == trial.constraints
    report = om.make_report(study, fitted)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["best"]["trial"] == study.best_trial.number
    assert max(report["best"]["constraints"].values()) <= 0
    assert not any("violates" in told for told in report["verdict"]["warnings"])
    better = [t for t in study.trials if t.state == TrialState.COMPLETE]
    assert report["constraints"]["feasible_truths"] == sum(
        max(t.constraints.values()) <= 0 for t in better
    )
    assert "Constraints kept: red_of_alone_0.9 by" in om.format_report(report)


def test_impossible_constraints_are_told(tmp_path: Path) -> None:
    impossible = om.Constraint("red", at_least=2.0)
    fitted = om.fit(toy_definition(constraints=[impossible]), tmp_path, progress=False)
    study = searched(fitted, 13)
    report = om.make_report(study, fitted)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["best"] is None
    truths = [t for t in study.trials if t.state == TrialState.COMPLETE]
    most = max(t.user_attrs["truth_red"] for t in truths)
    closest = report["constraints"]["closest"]
    assert closest["tasks"]["red"]["truth"] == most
    text = om.format_report(report)
    assert "No finetune satisfies the constraints: there is no best trial" in text
    assert f"trial {closest['trial']}, which misses red_at_least_2 by {2 - most:.4f}" in text
    assert "Task red violates constraint red_at_least_2" in text
    assert "Best task weights" not in text


def test_a_clone_of_a_trial_killed_at_its_end_keeps_its_constraints(tmp_path: Path) -> None:
    fitted = om.fit(toy_definition(constraints=0.9), tmp_path, progress=False)
    study = made_study(fitted)
    objective = om.Objective(fitted, progress=False)

    def killed(trial: optuna.Trial) -> float:
        objective(trial)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        om.run_trials(study, killed, workdir=tmp_path, n_trials=1)
    again = next(t for t in study.trials if t.state == TrialState.WAITING and t.number > 2)
    assert again.constraints
    om.run_trials(study, objective, workdir=tmp_path, n_trials=4)
    found = study.trials[again.number]
    assert found.state == TrialState.COMPLETE
    assert found.constraints == again.constraints


@pytest.mark.parametrize("constraints", [(), 0.9])
def test_a_pareto_study(tmp_path: Path, constraints: Any) -> None:
    definition = toy_definition(score="pareto", constraints=constraints)
    fitted = om.fit(definition, tmp_path, progress=False)
    study = searched(fitted, 24)
    assert study.metric_names == ["red", "blue"]
    assert study.user_attrs["reference_point"] == fitted.reference_point
    truths = [t for t in study.trials if t.state == TrialState.COMPLETE]
    promoted = [t for t in truths if "baseline" not in t.user_attrs]
    assert {t.user_attrs["baseline"] for t in truths if t not in promoted} == {
        "uniform",
        "red",
        "blue",
    }
    # It paces itself: one at a time, each after a preview at least, and no weights twice.
    assert all("promoted_from" in t.user_attrs for t in promoted)
    assert len({tuple(t.params.values()) for t in promoted}) == len(promoted)
    assert 3 <= len(promoted) <= (len(study.trials) - 3) // 2
    for trial in study.trials:
        assert trial.intermediate_values == {}
        attrs = trial.user_attrs
        if trial.state == TrialState.COMPLETE:
            assert trial.values == [attrs["truth_red"], attrs["truth_blue"]]
    report = om.make_report(study, fitted)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    front = report["front"]
    assert {row["trial"] for row in front["points"]} == {t.number for t in study.best_trials}
    assert front["hypervolume"] >= front["hypervolume_of_baselines"]
    assert front["hypervolume"] > 0
    assert report["best"] is None
    trained = [t for t in truths if not t.user_attrs["truth_reused"]]
    assert report["cost"]["finetune_steps"] == 7 * len(trained)
    copies = sum("promoted_from" in t.user_attrs for t in study.trials)
    taken = sum("preview_taken_from" in t.user_attrs for t in study.trials)
    waiting = sum(t.state == TrialState.WAITING for t in study.trials)
    previews = len(study.trials) - copies - taken
    assert report["counts"]["previews"] == previews, waiting
    text = om.format_report(report)
    assert f"Pareto front of the truths, {len(study.best_trials)} points" in text
    assert f"Hypervolume {front['hypervolume']:.6g}" in text
    assert set(report["calibration"]["tasks"]) == {"red", "blue"}


def test_a_failed_finetune_of_a_pareto_study(tmp_path: Path) -> None:
    tasks = toy_tasks()
    merged = om.PreviewSettings(heads="merged", anchor="none")
    definition = toy_definition(tasks, score="pareto", preview=merged)
    fitted = om.fit(definition, tmp_path, progress=False)
    object.__setattr__(fitted.tasks[0], "loss", failing_loss(2, math.nan))
    study = searched(fitted, 2)
    assert study.trials[0].state == TrialState.FAIL
    assert "loss nan" in study.trials[0].user_attrs["failure"]
    assert study.trials[1].state == TrialState.COMPLETE


def test_one_task_is_the_degenerate_study(tmp_path: Path) -> None:
    fitted = om.fit(toy_definition(toy_tasks()[:1], constraints=0.5), tmp_path, progress=False)
    study = searched(fitted, 10)
    assert {tuple(t.params.values()) for t in study.trials} == {(1.0,)}
    report = om.make_report(study, fitted)
    assert report["best"]["weights"] == {"red": 1.0}
    assert "There is one task, and so no weights to choose." in om.format_report(report)


@pytest.mark.filterwarnings("ignore:Fixed parameter")
@pytest.mark.parametrize("storage", [None, "sqlite:///{folder}/study.db"])
def test_enqueued_parameters_that_are_no_weights(
    fitted: om.FittedStudy, tmp_path: Path, storage: str | None
) -> None:
    """Their trials fail, once each, and no other; whoever reads the study can read on."""
    bad: list[dict[str, Any]] = [
        {"w_red": 2.0, "w_blue": 1.0},
        {"w_red": -1.0, "w_blue": 0.5},
        {"w_red": math.nan, "w_blue": 0.5},
        {"w_red": math.inf},
        {"w_red": "much", "w_blue": 0.5},
        {"w_read": 0.5, "w_blue": 0.5},
    ]
    here = om.create_storage(storage and storage.format(folder=tmp_path))
    study = om.open_study(
        "enqueued",
        here,
        fitted.definition.directions,
        sampler=om.PreviewSampler(fitted.definition.names, score=fitted.goal.scores, seed=0),
        pruner=om.PromotionPruner(fraction=0.5, warmup=2, score=fitted.goal.scores, seed=0),
    )
    om.prepare_study(study, fitted, second_seed=False)
    objective = om.Objective(fitted, progress=False)
    for params in bad:
        study.enqueue_trial(params)
    study.enqueue_trial({"w_red": 0.75})  # the sampler finds the other one
    assert om.run_trials(study, objective, workdir=tmp_path, n_trials=16) == 16

    failed = study.get_trials(states=[TrialState.FAIL])
    assert [t.number for t in failed] == list(range(3, 3 + len(bad)))
    for trial, params in zip(failed, bad):
        assert trial.params == {}
        name = "w_read" if "w_read" in params else "w_red"
        assert f"its parameter {name!r}" in trial.user_attrs["failure"]
    assert study.trials[3 + len(bad)].params["w_red"] == 0.75
    assert any("promoted_from" in t.user_attrs for t in study.trials)
    report = om.make_report(study, fitted)
    assert [row["trial"] for row in report["failures"]] == [t.number for t in failed]
    assert "expected a number between 0 and 1" in om.format_report(report)
    finetunes = DefinedFinetunes(fitted.definition, tmp_path / "work")
    assert Collector(study, finetunes, keep_best=1).find()
    elsewhere = om.create_storage(f"sqlite:///{tmp_path}/copy.db")
    optuna.copy_study(from_study_name="enqueued", from_storage=here, to_storage=elsewhere)
    copied = optuna.load_study(study_name="enqueued", storage=elsewhere)
    assert [t.state for t in copied.trials] == [t.state for t in study.trials]
