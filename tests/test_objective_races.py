"""Races in a real study: what is given up, what is written, and what never mixes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from helpers import toy_definition, toy_settings, toy_task
from optuna.trial import FrozenTrial, TrialState

import optuna_merge as om
from optuna_merge.calibration import study_calibration
from optuna_merge.samplers._history import TrialReader

NAMES = ("red", "blue")


def opposed_tasks(examples: int = 400) -> tuple[om.Task, ...]:
    """Two tasks on one head that want the opposite: the score depends on the weights."""
    tasks = []
    for seed, name in enumerate(NAMES):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(examples + 64, 6, generator=generator)
        labels = (x[:, seed] > 0).long()
        data = {"x": x, "labels": labels}
        tasks.append(
            toy_task(
                name,
                train={column: rows[:64] for column, rows in data.items()},
                validation={column: rows[64:] for column, rows in data.items()},
            )
        )
    return tuple(tasks)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> om.FittedStudy:
    definition = toy_definition(
        opposed_tasks(), finetuning=toy_settings(steps=60), score="target:red"
    )
    return om.fit(definition, tmp_path_factory.mktemp("work"), progress=False)


def run(fitted: om.FittedStudy, racing: om.Racing | None, n_trials: int = 40) -> optuna.Study:
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=om.PromotionPruner(fraction=0.1, warmup=8, rank="preview"),
    )
    om.prepare_study(study, fitted)
    study.optimize(om.Objective(fitted, racing=racing, progress=False), n_trials=n_trials)
    return study


@pytest.fixture(scope="module")
def raced(fitted: om.FittedStudy) -> optuna.Study:
    return run(fitted, om.Racing(alpha=0.05, slack=1.0))


def lost(study: optuna.Study) -> list[FrozenTrial]:
    return [trial for trial in study.trials if "raced_out_by" in trial.user_attrs]


def test_raced_out_trials_are_marked_partial_and_nothing_else(raced: optuna.Study) -> None:
    trials = lost(raced)
    assert len(trials) >= 3
    for trial in trials:
        attrs = trial.user_attrs
        assert trial.state == TrialState.PRUNED
        assert trial.number >= 3 + 8  # baselines and warmup
        assert not trial.intermediate_values
        assert not any(f"preview_{name}" in attrs for name in NAMES)
        assert all(attrs[f"partial_preview_{name}_se"] > 0 for name in NAMES)
        assert 0 < attrs["preview_examples"] < 1
        assert attrs["preview_decision"] == "prune"
        assert attrs["raced_out_by"] < trial.number
        bar = raced.trials[attrs["raced_out_by"]]
        assert attrs["partial_preview_red"] < bar.intermediate_values[0]
    for trial in raced.trials:
        if trial not in trials:
            assert 0 in trial.intermediate_values
            assert not any("partial" in key for key in trial.user_attrs)
            assert "preview_examples" not in trial.user_attrs


def test_the_same_is_promoted_as_without_races(
    fitted: om.FittedStudy, raced: optuna.Study
) -> None:
    plain = run(fitted, None)
    promoted = [
        [t.params for t in study.trials if t.state == TrialState.COMPLETE]
        for study in (plain, raced)
    ]
    assert promoted[0] == promoted[1]
    assert not lost(plain)
    # Promoted copies come in the same places, so trials correspond by number.
    for trial in lost(raced):
        full = plain.trials[trial.number]
        assert full.params == trial.params
        for name in NAMES:
            gap = abs(
                trial.user_attrs[f"partial_preview_{name}"] - full.user_attrs[f"preview_{name}"]
            )
            assert gap <= 4 * trial.user_attrs[f"partial_preview_{name}_se"]


def test_partial_numbers_stay_out_of_calibration_report_and_score(
    fitted: om.FittedStudy, raced: optuna.Study
) -> None:
    report = om.make_report(raced, fitted)
    copies = sum("promoted_from" in trial.user_attrs for trial in raced.trials)
    count = len(lost(raced))
    assert report["counts"]["previews"] == len(raced.trials) - copies - count
    truths = [t for t in raced.trials if t.state == TrialState.COMPLETE]
    assert study_calibration(raced, NAMES).score.count <= len(truths)
    history = TrialReader(NAMES).read(raced.study_name, raced.trials)
    assert len(history.score(1.0).previews) == len(raced.trials) - copies - count
    assert len(history.metric(0).previews) == len(raced.trials) - copies
    assert len(history.visited()) == len(raced.trials)


def test_a_raced_out_preview_is_not_taken_for_the_same_weights(
    fitted: om.FittedStudy, raced: optuna.Study
) -> None:
    trial = lost(raced)[0]
    raced.enqueue_trial(trial.params)
    raced.optimize(om.Objective(fitted, progress=False), n_trials=1)
    again = next(t for t in raced.trials[trial.number + 1 :] if t.params == trial.params)
    assert "preview_taken_from" not in again.user_attrs
    assert again.user_attrs["preview_seconds"] > 0


def test_a_retry_of_a_raced_out_trial_is_raced_out(fitted: om.FittedStudy) -> None:
    study = run(fitted, om.Racing(), n_trials=3)
    study.enqueue_trial({"w_red": 0.9, "w_blue": 0.1}, user_attrs={"raced_out_by": 0})
    study.optimize(om.Objective(fitted, progress=False), n_trials=1)
    last = study.trials[-1]
    assert last.state == TrialState.PRUNED
    assert not last.intermediate_values


def test_other_pruners_race_nothing(fitted: om.FittedStudy) -> None:
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=optuna.pruners.ThresholdPruner(lower=2.0),
    )
    om.prepare_study(study, fitted)
    study.optimize(om.Objective(fitted, racing=om.Racing(), progress=False), n_trials=20)
    assert all(0 in trial.intermediate_values for trial in study.trials)


def test_baselines_are_never_raced(raced: optuna.Study) -> None:
    assert all("baseline" not in trial.user_attrs for trial in lost(raced))


def test_metrics_that_are_no_means_are_refused(tmp_path: Path) -> None:
    from optuna_merge.tasks import macro_f1

    changes: dict[str, Any] = {"metrics": (macro_f1,)}
    tasks = (toy_task("red", 1, **changes), toy_task("blue", 2, **changes))
    fitted = om.fit(toy_definition(tasks), tmp_path, progress=False)
    with pytest.raises(ValueError, match="macro_f1"):
        om.Objective(fitted, racing=om.Racing())
