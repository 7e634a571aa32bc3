"""The ladder in a study: preview, refined previews, finetune; each with a gate before the next."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers import toy_definition
from optuna.trial import FrozenTrial, TrialState

import optuna_merge as om
from optuna_merge._optuna import fail_and_requeue
from optuna_merge.exceptions import TrialLostError

STEPS = (2, 5)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> om.FittedStudy:
    definition = toy_definition(refinement=om.RefinementSettings(STEPS, learning_rates=(1.0,)))
    return om.fit(definition, tmp_path_factory.mktemp("work"), progress=False)


def made_study(fitted: om.FittedStudy) -> optuna.Study:
    study = optuna.create_study(
        direction=fitted.definition.direction,
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=om.PromotionPruner(
            fraction=0.125, warmup=4, score=fitted.scores, refinements=STEPS, seed=0
        ),
    )
    om.prepare_study(study, fitted)
    return study


def finish(study: optuna.Study, fitted: om.FittedStudy, n_trials: int) -> None:
    objective = om.Objective(fitted, progress=False)
    study.optimize(objective, n_trials=n_trials)
    while study.get_trials(states=[TrialState.WAITING], deepcopy=False):
        study.optimize(objective, n_trials=1)


def own(trial: FrozenTrial) -> bool:
    return not {"promoted_from", "baseline"} & trial.user_attrs.keys()


def test_half_of_what_comes_to_a_gate_goes_on(fitted: om.FittedStudy) -> None:
    study = made_study(fitted)
    finish(study, fitted, 45)
    trials = study.trials
    assert {t.state for t in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    reached = {
        step: {
            tuple(t.params.values())
            for t in trials
            if step in t.intermediate_values and "baseline" not in t.user_attrs
        }
        for step in (0, *STEPS)
    }
    complete = [
        t for t in trials if t.state == TrialState.COMPLETE and "baseline" not in t.user_attrs
    ]
    counts = [len(reached[step]) for step in (0, *STEPS)] + [len(complete)]
    assert counts[0] == sum(map(own, trials)) >= 20
    assert [later == earlier // 2 for earlier, later in pairwise(counts)] == [True] * 3
    assert len({tuple(t.params.values()) for t in complete}) == len(complete)
    for trial in complete:
        # The finetune's own rungs come after the last refined preview.
        assert sorted(trial.intermediate_values) == [0, *STEPS, 8, 10, 12]
        assert trial.value == trial.intermediate_values[12]
        assert trial.user_attrs["preview_decision_5"] == "promote"
    for trial in trials:
        for step in STEPS:
            if step in trial.intermediate_values:
                metrics = [trial.user_attrs[f"refined_{step}_{t}"] for t in ("red", "blue")]
                assert trial.intermediate_values[step] == pytest.approx(sum(metrics) / 2)


def test_baselines_climb_without_being_asked_and_tasks_alone_are_not_refined(
    fitted: om.FittedStudy,
) -> None:
    study = made_study(fitted)
    study.optimize(om.Objective(fitted, progress=False), n_trials=3)
    uniform, red, blue = study.trials
    assert sorted(uniform.intermediate_values) == [0, *STEPS, 8, 10, 12]
    for trial in (red, blue):
        assert sorted(trial.intermediate_values) == [0, 8, 10, 12]
    assert all(t.state == TrialState.COMPLETE for t in study.trials)


def test_a_copy_goes_on_from_the_refined_preview(
    fitted: om.FittedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = made_study(fitted)
    finish(study, fitted, 45)
    late = [t for t in study.trials if t.user_attrs.get("promoted_at") == STEPS[-1]]
    assert late, "of 40 random previews some pass the last gate late"
    trial = late[0]
    source = study.trials[trial.user_attrs["promoted_from"]]
    assert source.state == TrialState.PRUNED
    for step in (0, *STEPS):
        assert trial.intermediate_values[step] == source.intermediate_values[step]

    # Such a copy neither previews nor refines again.
    def refused(*arguments: object, **options: object) -> None:
        raise AssertionError("it was previewed or refined again")

    monkeypatch.setattr(fitted.previewer, "load", refused)
    copy = optuna.trial.create_trial(
        state=TrialState.WAITING,
        params=source.params,
        distributions=source.distributions,
        intermediate_values={k: source.intermediate_values[k] for k in (0, *STEPS)},
        user_attrs={**source.user_attrs, "promoted_from": source.number, "promoted_at": 5},
    )
    copy.user_attrs.pop("preview_decision_5")  # queued by hand, beyond the budget
    study.add_trial(copy)
    study.optimize(om.Objective(fitted, progress=False), n_trials=1)
    assert study.trials[-1].state in (TrialState.COMPLETE, TrialState.PRUNED)


def test_a_killed_refinement_is_finished_by_the_clone(fitted: om.FittedStudy) -> None:
    study = made_study(fitted)
    objective = om.Objective(fitted, progress=False)
    trial = study.ask()  # uniform: it is refined in any case
    reports = 0
    report = trial.report

    def dying(value: float, step: int) -> None:
        nonlocal reports
        report(value, step)
        reports += 1
        if step == STEPS[0]:
            raise KeyboardInterrupt

    trial.report = dying  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        objective(trial)
    assert sorted(study.trials[0].intermediate_values) == [0, STEPS[0]]
    assert fail_and_requeue(study, study.trials[0])
    study.optimize(objective, n_trials=1)
    clone = next(t for t in study.trials if t.system_attrs.get("retry_history") == [0])
    while clone.state == TrialState.WAITING:
        study.optimize(objective, n_trials=1)
        clone = study.trials[clone.number]
    assert clone.state == TrialState.COMPLETE
    whole = made_study(fitted)
    whole.optimize(objective, n_trials=1)
    assert clone.intermediate_values == whole.trials[0].intermediate_values


def test_truths_may_start_from_the_merge(tmp_path: Path) -> None:
    fitted = om.fit(toy_definition(start="merged"), tmp_path, progress=False)
    study = made_study(fitted)
    study.pruner = om.PromotionPruner(fraction=0.5, warmup=1)
    study.optimize(om.Objective(fitted, progress=False), n_trials=6)
    uniform = study.trials[0]
    started = fitted.previewer({"red": 0.5, "blue": 0.5}).evaluations
    merged = fitted.store.find(
        {"red": 0.5, "blue": 0.5}, fitted.definition.finetuning, fitted.merge({"red": 0.5})
    )
    assert merged is not None and math.isfinite(uniform.value or math.nan)
    first = merged.rungs[3]
    assert sum(e.loss.value for e in first.values()) < sum(e.loss.value for e in started.values())


def test_a_pareto_study_has_no_refinements() -> None:
    with pytest.raises(ValueError, match="'pareto' with a refinement"):
        toy_definition(score="pareto", refinement=om.RefinementSettings(STEPS))
    with pytest.raises(ValueError, match=r"refinements are \(5, 2\), expected training steps"):
        om.PromotionPruner(refinements=(5, 2))


def test_a_worker_whose_trial_is_lost_in_a_refinement_says_so(
    fitted: om.FittedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = made_study(fitted)
    trial = study.ask()
    made = fitted.previewer.__class__.__call__
    previews: list[object] = []

    def counted(self: object, weights: dict[str, float]) -> object:
        previews.append(weights)
        return made(self, weights)  # type: ignore[arg-type]

    monkeypatch.setattr(fitted.previewer.__class__, "__call__", counted)
    run = fitted.store.run

    def late(*arguments: Any, **options: Any) -> Any:
        assert fail_and_requeue(study, trial.number)
        return run(*arguments, **options)

    monkeypatch.setattr(fitted.store, "run", late)
    with pytest.raises(TrialLostError, match="trial 0 was declared dead"):
        om.Objective(fitted, progress=False)(trial)
    assert len(previews) == 1  # the refinement starts from the preview that was made
    assert "refinement_seconds" not in study.trials[0].user_attrs


def test_a_lost_trial_does_not_end_the_worker(fitted: om.FittedStudy, tmp_path: Path) -> None:
    study = made_study(fitted)
    study.enqueue_trial({"w_red": 0.4, "w_blue": 0.6})
    objective = om.Objective(fitted, progress=False)
    lost: list[int] = []

    def stalled(trial: optuna.Trial) -> Any:
        if not lost:
            lost.append(trial.number)
            assert fail_and_requeue(study, trial.number)
        return objective(trial)

    om.run_trials(study, stalled, workdir=tmp_path, n_trials=4)
    assert study.trials[lost[0]].state == TrialState.FAIL
    ended = [t for t in study.trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(ended) >= 4
