"""Processes that fit one study at once: every task is finetuned by one of them, for all."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
from helpers import files_below, toy_definition, toy_settings
from optuna.trial import TrialState
from processes import PythonProcess

from optuna_merge.artifacts import SharedFiles, open_artifact_store
from optuna_merge.exceptions import CorruptFileError, OptunaMergeError
from optuna_merge.fitting import FolderSharing, Unit, fit
from optuna_merge.storages import create_storage
from optuna_merge.workers import StudySharing

FITTER = Path(__file__).with_name("_fitter.py")


@contextmanager
def fitters(*arguments: tuple[str, str, str]) -> Iterator[list[PythonProcess]]:
    """Processes that are ready to fit, and begin together."""
    processes = [PythonProcess(FITTER, *given) for given in arguments]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


def output(process: PythonProcess) -> list[str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.splitlines()


def begun(lines: list[str]) -> list[str]:
    return [line.removeprefix("begin ") for line in lines if line.startswith("begin")]


def test_two_machines_share_the_task_runs(tmp_path: Path) -> None:
    url, store = f"sqlite:///{tmp_path}/study.db", str(tmp_path / "store")
    create_storage(url)
    one, two = (str(tmp_path / name) for name in ("one", "two"))
    with fitters((url, store, one), (url, store, two)) as processes:
        lines = [output(process) for process in processes]
    assert sorted(begun(lines[0])) != sorted(begun(lines[1]))
    assert sorted(begun(lines[0]) + begun(lines[1])) == ["blue", "red", "red+blue"]
    assert lines[0][-1] == lines[1][-1] == f"done {fit(toy_definition(), one).fingerprint}"
    units = optuna.load_study(study_name="s/fit", storage=create_storage(url)).get_trials()
    complete = [t.user_attrs["name"] for t in units if t.state == TrialState.COMPLETE]
    assert sorted(complete) == ["posteriors", "task blue", "task red", "uniform weights"]
    assert {t.state for t in units} <= {TrialState.COMPLETE, TrialState.PRUNED}
    # A machine that comes later trains nothing.
    sharing, _ = shared(tmp_path, url, "three")
    late = fit(toy_definition(), tmp_path / "three", progress=False, sharing=sharing)
    assert all(run.reused for run in late.runs.values())


@pytest.mark.parametrize("kind", [pytest.param("sqlite", marks=pytest.mark.slow), "postgres"])
def test_the_task_run_of_a_killed_machine_is_taken_over(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url, store = f"sqlite:///{tmp_path}/study.db", str(tmp_path / "store")
    if kind == "postgres":
        url = request.getfixturevalue("postgres_database")
    create_storage(url)
    one, two = (str(tmp_path / name) for name in ("one", "two"))
    with fitters((url, store, one), (url, store, two)) as (killed, other):
        begin, rung = killed.stdout.readline(), killed.stdout.readline()
        assert rung.startswith("rung")
        killed.kill()  # SIGKILL, in the middle of its run
        lines = output(other)
    assert sorted(begun(lines)) == ["blue", "red", "red+blue"]
    assert begin.split()[1] in begun(lines)
    assert lines[-1] == f"done {fit(toy_definition(), two).fingerprint}"


def test_processes_with_one_folder_share_the_task_runs(tmp_path: Path) -> None:
    folder = str(tmp_path / "work")
    with fitters(("-", "-", folder), ("-", "-", folder)) as (killed, other):
        begin, rung = killed.stdout.readline(), killed.stdout.readline()
        assert rung.startswith("rung")
        killed.kill()
        lines = output(other)
    name = begin.split()[1]
    assert begun(lines)[0] != name, "the other one took what was free first"
    assert sorted(begun(lines)) == ["blue", "red", "red+blue"]
    assert lines[-1].startswith("done")


def shared(folder: Path, url: str, name: str, **options: bool) -> tuple[StudySharing, SharedFiles]:
    storage = create_storage(url)
    study = optuna.create_study(study_name="s", storage=storage, load_if_exists=True)
    files = SharedFiles(study, open_artifact_store(str(folder / "store")), folder / name)
    return StudySharing(study, files, folder / name, **options), files


def test_other_settings_are_other_units(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    sharing, _ = shared(tmp_path, url, "one")
    first = fit(toy_definition(), tmp_path / "one", progress=False, sharing=sharing)
    other, files = shared(tmp_path, url, "two")
    changed = toy_definition(finetuning=toy_settings(steps=5))
    second = fit(changed, tmp_path / "two", progress=False, sharing=other)
    assert second.fingerprint != first.fingerprint
    assert second.runs["red"].steps == 5
    assert len([name for name in files.names() if "finetunes" in name]) == 6


def test_a_unit_that_fails_ends_its_worker_and_is_tried_by_the_next(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"

    def fail() -> list[Path]:
        raise CorruptFileError("the data are damaged")

    def work() -> list[Path]:
        path = tmp_path / "two" / "a.bin"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"a")
        return [path]

    with pytest.raises(CorruptFileError, match="the data are damaged"):
        shared(tmp_path, url, "one")[0].work_off([Unit("task a", "a", fail)])
    sharing, files = shared(tmp_path, url, "two")
    sharing.work_off([Unit("task a", "a", work)])
    assert files.names() == ["a.bin"]
    units = optuna.load_study(study_name="s/fit", storage=create_storage(url)).get_trials()
    assert [t.state for t in units] == [TrialState.FAIL, TrialState.COMPLETE]


def test_on_a_full_disk_it_waits_and_gives_up_after_ten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("optuna_merge.workers._running.time.sleep", slept.append)

    def full(failures: int) -> Unit:
        tries = iter(range(failures))

        def work() -> list[Path]:
            if next(tries, None) is not None:
                raise OSError(errno.ENOSPC, "No space left on device")
            return []

        return Unit("task a", "a", work)

    url = f"sqlite:///{tmp_path}/study.db"
    shared(tmp_path, url, "one")[0].work_off([full(3)])
    assert slept == [1.0, 2.0, 4.0]
    with pytest.raises(OptunaMergeError, match="10 trials in a row failed, the last one because"):
        shared(tmp_path, f"sqlite:///{tmp_path}/other.db", "one")[0].work_off([full(99)])
    assert len(slept) == 3 + 9


def noting(made: list[str], key: str) -> Unit:
    def work() -> list[Path]:
        made.append(key)
        return []

    return Unit(f"task {key}", key, work)


def test_the_later_of_two_equal_units_gives_way(tmp_path: Path) -> None:
    """Two workers that begin at once may both enqueue."""
    sharing, _ = shared(tmp_path, f"sqlite:///{tmp_path}/study.db", "one")
    made: list[str] = []
    units = [noting(made, key) for key in "ab"]
    sharing._enqueue(units)
    sharing._enqueue(units)
    sharing.work_off(units)
    states = [trial.state for trial in sharing._units.get_trials()]
    assert states == [TrialState.COMPLETE] * 2 + [TrialState.PRUNED] * 2
    assert sorted(set(made)) == ["a", "b"]
    # One that is enqueued when its unit is done already does not wait for ever, either.
    sharing._enqueue(units[:1])
    sharing.work_off(units)
    assert sharing._units.get_trials()[-1].state == TrialState.PRUNED


def test_a_worker_that_only_previews_waits(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    made: list[str] = []
    waits, does = shared(tmp_path, url, "one", claims=False)[0], shared(tmp_path, url, "two")[0]
    waiting = threading.Thread(target=waits.work_off, args=([noting(made, "a")],))
    waiting.start()
    time.sleep(0.5)
    assert made == []
    does.work_off([noting(made, "a")])
    waiting.join(timeout=30)
    assert made[0] == "a" and not waiting.is_alive()


def test_a_folder_shares_units_out_in_any_order(tmp_path: Path) -> None:
    made: list[str] = []
    units = [noting(made, key) for key in "abc"]
    FolderSharing(tmp_path).work_off(units)
    assert made == ["a", "b", "c"]
    assert files_below(tmp_path) == {}
