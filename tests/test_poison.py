"""Weightings that fail, or kill their workers, again and again, are given up after three tries.

What does so is a part of a real objective; workers are forked, and die by SIGKILL.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from helpers import toy_definition
from optuna.trial import TrialState

import optuna_merge as om
from optuna_merge.search import open_study, prepare_study
from optuna_merge.workers import _running

Poison = Callable[[optuna.Trial], bool]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> om.FittedStudy:
    return om.fit(toy_definition(), tmp_path_factory.mktemp("work"), progress=False)


def opened(fitted: om.FittedStudy, folder: Path) -> optuna.Study:
    study = open_study(
        "poison",
        om.create_storage(f"sqlite:///{folder}/study.db"),
        fitted.definition.directions,
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=om.PromotionPruner(warmup=2, fraction=0.5),
    )
    prepare_study(study, fitted, second_seed=False)
    return study


def work(fitted: om.FittedStudy, folder: Path, n_trials: int, poison: Poison, what: object) -> int:
    """A worker as it starts again and again; `what` happens in a poisonous trial's finetune."""
    objective = om.Objective(fitted, progress=False)

    def poisoned(trial: optuna.Trial) -> float | tuple[float, ...]:
        truth = objective._truth

        def act(*arguments: object, **more: object) -> float | tuple[float, ...]:
            if poison(trial):
                if isinstance(what, Exception):
                    raise what
                os.kill(os.getpid(), signal.SIGKILL)
            return truth(*arguments, **more)  # type: ignore[arg-type]

        objective._truth = act  # type: ignore[method-assign]
        try:
            return objective(trial)
        finally:
            objective._truth = truth  # type: ignore[method-assign]

    study = opened(fitted, folder)
    return om.run_trials(study, poisoned, workdir=folder, n_trials=n_trials)


def forked(job: Callable[[], object]) -> int:
    """Run in a process of its own; its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            job()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def uniform(trial: optuna.Trial) -> bool:
    return trial.user_attrs.get("baseline") == "uniform"


def promoted(trial: optuna.Trial) -> bool:
    return trial.user_attrs.get("promoted_from") is not None


def test_a_baseline_that_kills_its_workers(fitted: om.FittedStudy, tmp_path: Path) -> None:
    codes = [forked(lambda: work(fitted, tmp_path, 6, uniform, None)) for _ in range(4)]
    assert codes == [-signal.SIGKILL] * 3 + [0]
    study = opened(fitted, tmp_path)  # enqueues what is missing of the baselines, but for this one
    tried = [t for t in study.trials if t.user_attrs.get("baseline") == "uniform"]
    assert [t.state for t in tried] == [TrialState.FAIL] * 3
    assert [t.user_attrs["tries"] for t in tried] == [1, 2, 3]
    assert {t.user_attrs["failure"] for t in tried} == {"its worker was killed"}
    assert sum(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in study.trials) == 6
    report = om.make_report(study, fitted)
    (row,) = report["failures"]
    assert (row["baseline"], row["tries"]) == ("uniform", 3)
    assert row["weights"] == {"red": 0.5, "blue": 0.5}
    expected = f"Given up after 3 tries: uniform (trial {row['trial']}): its worker was killed"
    assert expected in om.format_report(report).splitlines()


def test_a_promoted_weighting_that_fails(fitted: om.FittedStudy, tmp_path: Path) -> None:
    """Its copy's clones count as one lineage; others are promoted and finetuned all the same."""
    first: list[int] = []

    def poison(trial: optuna.Trial) -> bool:
        if promoted(trial) and not first:
            first.append(trial.user_attrs["promoted_from"])
        return promoted(trial) and trial.user_attrs["promoted_from"] == first[0]

    for _ in range(3):
        with pytest.raises(RuntimeError, match="out of memory"):
            work(fitted, tmp_path, 16, poison, RuntimeError("out of memory"))
    # It leaves no promoted finetune waiting, which may be one more than was asked for.
    assert work(fitted, tmp_path, 16, poison, RuntimeError("out of memory")) in (16, 17)
    study = opened(fitted, tmp_path)
    tried = [t for t in study.trials if t.user_attrs.get("promoted_from") == first[0]]
    assert [t.state for t in tried] == [TrialState.FAIL] * 3
    assert tried[-1].user_attrs["given_up"] is True
    (row,) = om.make_report(study, fitted)["failures"]
    assert (row["trial"], row["tries"]) == (tried[-1].number, 3)
    assert row["reason"] == "RuntimeError: out of memory"
    assert any(
        t.user_attrs.get("promoted_from") not in (None, first[0])
        for t in study.trials
        if t.state == TrialState.COMPLETE
    )


def test_a_full_disk_is_no_fault_of_the_trial(
    fitted: om.FittedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(_running.time, "sleep", waits.append)
    full = OSError(errno.ENOSPC, "No space left on device")
    assert work(fitted, tmp_path, 3, lambda trial: len(waits) < 5, full) == 3
    assert waits == [1, 2, 4, 8, 16]
    study = opened(fitted, tmp_path)
    back = [t for t in study.trials if "handed_back" in t.user_attrs]
    assert len(back) == 5
    assert not [t for t in study.trials if "tries" in t.user_attrs]
    assert len([t for t in study.trials if t.state == TrialState.COMPLETE]) == 3
    assert om.make_report(study, fitted)["failures"] == []


def test_a_disk_that_stays_full_ends_the_run(
    fitted: om.FittedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_running.time, "sleep", lambda seconds: None)
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(om.exceptions.OptunaMergeError, match=r"10 trials in a row.*No space left"):
        work(fitted, tmp_path, 3, lambda trial: True, full)
    assert work(fitted, tmp_path, 3, lambda trial: False, full) == 3  # nothing was lost


def test_a_diverging_baseline_is_tried_at_three_starts(
    fitted: om.FittedStudy, tmp_path: Path
) -> None:
    diverged = om.exceptions.TrainingDivergedError("loss nan")
    for _ in range(4):
        work(fitted, tmp_path, 3, uniform, diverged)
    tried = [
        t for t in opened(fitted, tmp_path).trials if t.user_attrs.get("baseline") == "uniform"
    ]
    assert [t.user_attrs["tries"] for t in tried] == [1, 2, 3]
