"""Runs: what they leave behind when they end, and what the next call with their number does."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import optuna
import pytest
from filelock import FileLock
from helpers import toy_definition
from optuna.trial import FrozenTrial, TrialState

import optuna_merge as om
from optuna_merge._base.files import write_json
from optuna_merge.trials import RUN, read_study, weight_params
from optuna_merge.workers import is_promoted, runs_folder

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> om.FittedStudy:
    return om.fit(toy_definition(), tmp_path_factory.mktemp("fit"), progress=False)


def opened(fitted: om.FittedStudy, folder: Path) -> optuna.Study:
    study = om.open_study(
        "runs",
        om.create_storage(f"sqlite:///{folder}/study.db"),
        "maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=om.PromotionPruner(fraction=0.5, warmup=2, seed=0),
    )
    om.prepare_study(study, fitted, second_seed=False)
    return study


def promoted_and_waiting(study: optuna.Study) -> list[FrozenTrial]:
    return [t for t in study.get_trials(states=[TrialState.WAITING]) if is_promoted(t)]


def finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(states=FINISHED)


def until_something_waits(study: optuna.Study, fitted: om.FittedStudy) -> None:
    """Run single trials until one has promoted another one, which waits then."""
    objective = om.Objective(fitted, progress=False)
    for _ in range(40):
        if promoted_and_waiting(study):
            return
        study.optimize(objective, n_trials=1)
    pytest.fail("no preview was promoted")


def run(
    study: optuna.Study, fitted: om.FittedStudy, folder: Path, n_trials: int, **options: object
) -> int:
    objective = om.Objective(fitted, progress=False)
    return om.run_trials(study, objective, workdir=folder, n_trials=n_trials, **options)  # type: ignore[arg-type]


def test_a_run_leaves_no_finetune_waiting_that_is_promoted(
    fitted: om.FittedStudy, tmp_path: Path
) -> None:
    study = opened(fitted, tmp_path)
    assert run(study, fitted, tmp_path, 1) == 1
    waiting = study.get_trials(states=[TrialState.WAITING])
    assert ["baseline" in t.user_attrs for t in waiting] == [True, True], "nobody promised them"
    beyond = 0
    for _ in range(8):
        before = len(finished(study))
        count = run(study, fitted, tmp_path, 2)
        assert len(finished(study)) - before == count >= 2
        assert not promoted_and_waiting(study)
        beyond += count - 2
    assert beyond > 0
    assert not list(tmp_path.rglob("runs/*/*.json"))


def test_baselines_that_were_queued_twice_end_no_run(
    fitted: om.FittedStudy, tmp_path: Path
) -> None:
    study = opened(fitted, tmp_path)
    for _ in range(11):  # as many as several workers of a study of many tasks leave in a row
        uniform = weight_params({"red": 1, "blue": 1})
        study.enqueue_trial(uniform, user_attrs={"baseline": "uniform"})
    assert run(study, fitted, tmp_path, 4) == 4
    assert read_study(study).counts.failed == 0
    assert len(study.get_trials(states=[TrialState.FAIL])) == 11


def test_a_run_whose_time_is_over_finetunes_what_is_promoted_and_may_go_on_later(
    fitted: om.FittedStudy, tmp_path: Path
) -> None:
    study = opened(fitted, tmp_path)
    until_something_waits(study, fitted)
    done = run(study, fitted, tmp_path, 4, timeout=0.0)
    assert done >= 1
    assert not promoted_and_waiting(study)
    assert len(list(tmp_path.rglob("runs/*/*.json"))) == 1
    assert run(study, fitted, tmp_path, done + 1, timeout=0.0) == 0, "another run"
    assert run(study, fitted, tmp_path, 4) >= 4
    assert not promoted_and_waiting(study)


def test_reports_and_previews_leave_finetunes_to_others(
    fitted: om.FittedStudy, tmp_path: Path
) -> None:
    study = opened(fitted, tmp_path)
    until_something_waits(study, fitted)
    waiting = [t.number for t in promoted_and_waiting(study)]
    assert run(study, fitted, tmp_path, 0) == 0
    assert run(study, fitted, tmp_path, 1, role="preview", timeout=0.0) == 0
    assert [t.number for t in promoted_and_waiting(study)] == waiting


def test_finetunes_are_left_to_another_worker_that_is_alive_and_goes_on(
    fitted: om.FittedStudy, tmp_path: Path
) -> None:
    study = opened(fitted, tmp_path)
    until_something_waits(study, fitted)
    other = runs_folder(tmp_path, study) / "90-other.json"
    held, release = multiprocessing.Event(), multiprocessing.Event()
    worker = multiprocessing.get_context("fork").Process(
        target=hold, args=(other.with_suffix(".lock"), held, release)
    )
    worker.start()
    try:
        assert held.wait(60)
        write_json(other, {})
        assert run(study, fitted, tmp_path, 3, timeout=0.0) == 0
        assert promoted_and_waiting(study), "the other one takes them"
        write_json(other, {"is_ending": True})
        assert run(study, fitted, tmp_path, 3, timeout=0.0) >= 1
        assert not promoted_and_waiting(study)
    finally:
        release.set()
        worker.join()
    study.add_trial(
        optuna.create_trial(state=TrialState.RUNNING, user_attrs={RUN: "of another machine"})
    )
    until_something_waits(study, fitted)
    done = len(finished(study))
    run(study, fitted, tmp_path, 3, timeout=0.0)
    assert len(finished(study)) == done
    assert promoted_and_waiting(study)


def hold(lock: Path, held: object, release: object) -> None:
    with FileLock(lock):
        held.set()  # type: ignore[attr-defined]
        release.wait(60)  # type: ignore[attr-defined]


def test_what_belongs_to_the_end_is_done_again_without_another_run(
    fitted: om.FittedStudy, tmp_path: Path
) -> None:
    study = opened(fitted, tmp_path)
    calls: list[int] = []

    def report() -> None:
        calls.append(len(finished(study)))
        if len(calls) < 3:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(study, fitted, tmp_path, 5, at_end=report)
    count = run(study, fitted, tmp_path, 5, at_end=report)
    assert calls == [count] * 3
    assert run(study, fitted, tmp_path, 5, at_end=report) >= 5, "that run is over"
    assert calls[3] >= count + 5


@pytest.mark.parametrize("n_trials", [None, 50])
def test_a_time_that_is_over_stays_over_until_the_end_is_done(
    fitted: om.FittedStudy, tmp_path: Path, n_trials: int | None
) -> None:
    study = opened(fitted, tmp_path)

    def killed() -> None:
        raise KeyboardInterrupt

    options: dict[str, object] = {"n_trials": n_trials, "timeout": 0.5}
    with pytest.raises(KeyboardInterrupt):
        run(study, fitted, tmp_path, at_end=killed, **options)  # type: ignore[arg-type]
    done = len(finished(study))
    assert run(study, fitted, tmp_path, **options) == done  # type: ignore[arg-type]
    assert len(finished(study)) == done
    run(study, fitted, tmp_path, **options)  # type: ignore[arg-type]
    assert len(finished(study)) > done
