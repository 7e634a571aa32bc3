"""Workers are really killed, and the same command goes on; two processes share one study."""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import datetime
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState
from processes import PythonProcess

from optuna_merge.storages import create_storage
from optuna_merge.workers import is_promoted

DIGITS = Path(__file__).with_name("digits_study.py")
KILLED = Path(__file__).with_name("killed_worker.py")
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def started(folder: Path, n_trials: int, *, kill_at: str | None = None) -> PythonProcess:
    before = [] if kill_at is None else [KILLED, kill_at]
    command = [
        *before, DIGITS, "--study-name", "digits",
        "--storage", f"sqlite:///{folder}/digits.db", "--workdir", str(folder / "work"),
        "--n-trials", str(n_trials), "--seed", "0",
        "--no-second-seed", "--keep-going", "--fraction", "0.25",
    ]  # fmt: skip
    return PythonProcess(*command)


def run(folder: Path, n_trials: int) -> tuple[str, str]:
    worker = started(folder, n_trials)
    output, error = worker.communicate()
    assert worker.returncode == 0, error
    return output, error


def trials_of(folder: Path) -> list[FrozenTrial]:
    storage = create_storage(f"sqlite:///{folder}/digits.db")
    return optuna.load_study(study_name="digits", storage=storage).get_trials()


def finished(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state in FINISHED]


def test_the_same_command_goes_on_after_every_kill_9(tmp_path: Path) -> None:
    n_trials = 16
    runs = tmp_path / "work" / "finetunes"
    trials: list[FrozenTrial] = []
    models: dict[Path, int] = {}

    def check_nothing_is_repeated() -> None:
        after = trials_of(tmp_path)
        for trial in trials:
            assert after[trial.number] == trial
        for path, changed in models.items():
            assert path.stat().st_mtime_ns == changed, f"{path} was trained again"
        trials[:] = finished(after)
        models.update({path: path.stat().st_mtime_ns for path in runs.glob("*/model.*")})

    errors = []
    for point in ("task_run", "preview", "finetune", "report"):
        killed = started(tmp_path, n_trials, kill_at=point)
        errors.append(killed.communicate()[1])
        assert killed.returncode == -9, errors[-1]
        in_a_finetune = point in ("task_run", "finetune")
        assert len(list(runs.glob("*/checkpoint.*"))) == in_a_finetune
        check_nothing_is_repeated()
    _, error = run(tmp_path, n_trials)
    check_nothing_is_repeated()
    errors.append(error)
    goes_on = ["going on after step 20 of 60" in error for error in errors]
    assert goes_on == [False, True, False, True, False], "with task run and finetune"
    assert len(trials) == n_trials
    assert not any(is_promoted(t) for t in trials_of(tmp_path) if not t.state.is_finished())
    assert not [t for t in trials_of(tmp_path) if t.state == TrialState.RUNNING]
    assert not list(runs.glob("*/checkpoint.*"))
    report = json.loads((tmp_path / "work" / "report-digits.json").read_text())
    assert report["best"]["tasks"]["rotated"]["test"] > 0.2

    output, _ = run(tmp_path, 3)  # a command that was not killed adds its trials
    check_nothing_is_repeated()
    assert len(trials) == n_trials + 3
    baselines = [t.user_attrs["baseline"] for t in trials if "baseline" in t.user_attrs]
    assert sorted(baselines) == ["mirrored", "rotated", "uniform", "upright"]
    assert "Best task weights" in output


def test_two_processes_on_one_sqlite_study(tmp_path: Path) -> None:
    workers = [started(tmp_path, 12) for _ in range(2)]
    outputs = [worker.communicate() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    trials = trials_of(tmp_path)
    assert {trial.state for trial in trials} <= {*FINISHED, TrialState.WAITING, TrialState.FAIL}
    by_run: dict[str, list[FrozenTrial]] = defaultdict(list)
    for trial in sorted(finished(trials), key=lambda t: t.datetime_start or datetime.min):
        by_run[trial.user_attrs["run"]].append(trial)
    assert len(by_run) == 2
    for own in by_run.values():
        assert len(own) >= 12
        # Beyond its number a run only finetunes what is promoted and nobody else is there for.
        assert all(is_promoted(trial) for trial in own[12:])
    sources = [
        t.user_attrs["promoted_from"]
        for t in trials
        if "promoted_from" in t.user_attrs and t.state == TrialState.COMPLETE
    ]
    assert len(sources) == len(set(sources)), "a promotion was finetuned twice"
    baselines = [
        t.user_attrs["baseline"]
        for t in trials
        if "baseline" in t.user_attrs and t.state == TrialState.COMPLETE
    ]
    assert sorted(baselines) == ["mirrored", "rotated", "uniform", "upright"]
