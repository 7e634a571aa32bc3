from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RetryHeartbeatStaleTrialCallback
from optuna.testing.storages import StorageSupplier
from optuna.trial import TrialState, create_trial
from processes import PythonProcess

from optuna_merge.storages import create_storage
from optuna_merge.trials import (
    RUN,
    ReadMarkingStorage,
    claim_waiting,
    fail_and_requeue,
    is_running,
    latest_view,
    only_reading,
    optimize_claimed,
    set_trial_user_attr,
    set_user_attrs,
)


@pytest.fixture(params=["memory", "sqlite", "journal", "postgres", "mariadb", "grpc"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BaseStorage]:
    if request.param in ("postgres", "mariadb"):
        yield create_storage(request.getfixturevalue(f"{request.param}_database"))
    elif request.param == "grpc":
        with StorageSupplier("grpc_rdb") as proxy:
            yield proxy
    elif request.param == "memory":
        yield create_storage(None)
    else:
        scheme = request.param
        yield create_storage(f"{scheme}:///{tmp_path}/study")


def running_trial(study: optuna.Study) -> optuna.Trial:
    trial = study.ask()
    trial.suggest_float("w_a", 0, 1)
    trial.report(0.5, 0)
    trial.set_user_attr("weight_a", 1.0)
    return trial


@pytest.mark.parametrize("by_number", [True, False])
def test_set_trial_user_attr(storage: BaseStorage, by_number: bool) -> None:
    study = optuna.create_study(storage=storage)
    study.ask()
    trial = study.ask()
    frozen = study.trials[1]
    set_trial_user_attr(study, 1 if by_number else frozen, "key", [1, "a"])
    assert [t.user_attrs for t in study.trials] == [{}, {"key": [1, "a"]}]
    assert frozen.user_attrs == ({} if by_number else {"key": [1, "a"]})
    study.tell(trial, 1.0)
    with pytest.raises(UpdateFinishedTrialError):
        set_trial_user_attr(study, 1, "key", 2)
    with pytest.raises(KeyError):
        set_trial_user_attr(study, 7, "key", 2)


def test_set_user_attrs(storage: BaseStorage) -> None:
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    set_user_attrs(trial, {"a": 1})
    set_user_attrs(trial, {"a": 2, "b": [1.5, "ä", None]})
    assert study.trials[0].user_attrs == trial.user_attrs == {"a": 2, "b": [1.5, "ä", None]}
    study.tell(trial, 1.0)
    with pytest.raises(UpdateFinishedTrialError):
        set_user_attrs(trial, {"a": 3})
    assert study.trials[0].user_attrs["a"] == 2


def test_the_latest_view_is_what_pruners_get(storage: BaseStorage) -> None:
    study = optuna.create_study(storage=storage)
    trial = running_trial(study)
    seen = latest_view(trial)
    assert seen.number == 0
    assert seen.params == trial.params
    assert seen.intermediate_values == {0: 0.5}
    assert seen.user_attrs == {"weight_a": 1.0}
    trial.set_constraint("c", 1.0)
    assert latest_view(trial).constraints == {"c": 1.0}
    set_trial_user_attr(study, seen, "key", 1)
    assert study.trials[0].user_attrs["key"] == trial.user_attrs["key"] == 1


def test_is_running_asks_the_storage(storage: BaseStorage) -> None:
    study = optuna.create_study(study_name="s", storage=storage)
    study.add_trial(create_trial(state=TrialState.WAITING))
    assert not is_running(study, 0)
    trial = study.ask()
    frozen = study.trials[0]
    assert is_running(study, frozen)
    # Another worker fails it: `frozen`, and what this study may have cached, is out of date.
    other = optuna.load_study(study_name="s", storage=storage)
    other.tell(trial.number, state=TrialState.FAIL)
    assert frozen.state == TrialState.RUNNING
    assert not is_running(study, frozen)
    assert not is_running(study, 0)


def test_fail_and_requeue_makes_the_clone_that_the_heartbeat_makes(storage: BaseStorage) -> None:
    study = optuna.create_study(storage=storage)
    ours, theirs = running_trial(study), running_trial(study)
    assert fail_and_requeue(study, study.trials[ours.number])
    study.tell(theirs, state=TrialState.FAIL)
    callback = RetryHeartbeatStaleTrialCallback(max_retry=2, inherit_intermediate_values=True)
    callback(study, copy.deepcopy(study.trials[theirs.number]))

    failed, _, clone, expected = study.trials
    assert failed.state == TrialState.FAIL
    assert failed.system_attrs == {}  # nothing must have been written into it
    assert failed.user_attrs == {"weight_a": 1.0, "failure": "its worker died", "tries": 1}
    assert clone.state == expected.state == TrialState.WAITING
    assert expected.user_attrs == {"weight_a": 1.0}
    assert clone.user_attrs == {**expected.user_attrs, "tries": 1}
    assert clone.intermediate_values == expected.intermediate_values == {0: 0.5}
    assert clone.params == failed.params
    assert clone.distributions == expected.distributions
    assert clone.system_attrs == {"failed_trial": 0, "retry_history": [0]}
    assert expected.system_attrs == {"failed_trial": 1, "retry_history": [1]}


def test_three_tries_and_it_is_given_up(storage: BaseStorage) -> None:
    study = optuna.create_study(storage=storage)
    running_trial(study)
    tries = 1
    while fail_and_requeue(study, study.trials[-1].number, f"reason {tries}"):
        if study.trials[-1].state != TrialState.WAITING:
            break
        study.ask()
        tries += 1
    assert tries == 3
    assert [t.state for t in study.trials] == [TrialState.FAIL] * 3
    assert study.trials[-1].system_attrs["retry_history"] == [0, 1]
    said = [(t.user_attrs["failure"], t.user_attrs["tries"]) for t in study.trials]
    assert said == [("reason 1", 1), ("reason 2", 2), ("reason 3", 3)]
    assert ["given_up" in t.user_attrs for t in study.trials] == [False, False, True]


def test_a_try_that_was_handed_back_does_not_count(storage: BaseStorage) -> None:
    study = optuna.create_study(storage=storage)
    running_trial(study)
    for _ in range(5):
        assert fail_and_requeue(study, study.trials[-1], "the disk was full", counted=False)
        study.ask()
    assert fail_and_requeue(study, study.trials[-1], "its worker died")
    last = study.trials[-1]
    assert last.state == TrialState.WAITING
    assert last.user_attrs == {"weight_a": 1.0, "tries": 1}
    assert last.system_attrs["retry_history"] == [0, 1, 2, 3, 4, 5]
    assert study.trials[0].user_attrs["handed_back"] is True


def test_fail_and_requeue_leaves_other_states_alone(storage: BaseStorage) -> None:
    study = optuna.create_study(storage=storage)
    for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.WAITING):
        value = 1.0 if state == TrialState.COMPLETE else None
        study.add_trial(create_trial(state=state, value=value))
    before = study.trials
    assert not any(fail_and_requeue(study, trial) for trial in before)
    assert study.trials == before


def test_fail_and_requeue_lost_race(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process fails the trial between our look and our write: no second clone."""
    study = optuna.create_study()
    running_trial(study)
    seen = study.trials[0]
    assert fail_and_requeue(study, 0)
    monkeypatch.setattr(study._storage, "get_trial", lambda trial_id: seen)
    assert not fail_and_requeue(study, 0)
    assert len(study.trials) == 2


_RACER = """
import sys, time, optuna
from optuna_merge.storages import create_storage
from optuna_merge.trials import fail_and_requeue
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.load_study(study_name="s", storage=create_storage(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
print(sum(fail_and_requeue(study, number) for number in range(20)))
"""


@pytest.mark.parametrize("kind", ["sqlite", "journal", "postgres", "mariadb"])
def test_processes_that_requeue_the_same_trials(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"{kind}:///{tmp_path}/study"
    if kind in ("postgres", "mariadb"):
        url = request.getfixturevalue(f"{kind}_database")
    study = optuna.create_study(study_name="s", storage=create_storage(url))
    for _ in range(20):
        study.ask()
    racers = [PythonProcess("-c", _RACER, url) for _ in range(3)]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    answers = [racer.communicate("go\n", timeout=120)[0] for racer in racers]
    assert sum(map(int, answers)) == 20
    clones = study.get_trials(states=[TrialState.WAITING])
    assert sorted(t.system_attrs["failed_trial"] for t in clones) == list(range(20))


def test_read_marking(tmp_path: Path) -> None:
    marks: list[bool] = []
    storage = ReadMarkingStorage(f"sqlite:///{tmp_path}/study.db")
    study = optuna.create_study(storage=storage)
    study.add_trial(create_trial(value=1.0))

    sqlalchemy.event.listen(storage.engine, "begin", lambda _: marks.append(only_reading()))
    study.get_trials(deepcopy=False)
    assert marks == [True]
    storage.get_trial(1)
    assert marks == [True, True]
    study.ask()
    assert set(marks[2:]) == {True, False}  # ask looks for waiting trials, then writes
    study.set_user_attr("key", 1)
    assert marks[-1] is False
    with pytest.raises(KeyError):
        storage.get_trial(1000)
    assert not only_reading()


def test_claiming_a_waiting_trial(storage: BaseStorage) -> None:
    study = optuna.create_study(storage=storage)
    for x in (0.0, 1.0, 2.0):
        study.enqueue_trial({"x": x}, user_attrs={"x": x})
    assert claim_waiting(study, lambda trial: trial.user_attrs["x"] == 1.0) == 1
    assert claim_waiting(study, lambda trial: trial.user_attrs["x"] == 1.0) is None
    optimize_claimed(study, lambda trial: trial.suggest_float("x", 0, 9), 1)
    assert study.trials[1].value == 1.0
    optimize_claimed(study, lambda trial: trial.suggest_float("y", 0, 9), None)
    states = [TrialState.WAITING, TrialState.COMPLETE, TrialState.WAITING, TrialState.COMPLETE]
    assert [trial.state for trial in study.trials] == states
    study.optimize(lambda trial: trial.suggest_float("x", 0, 9), n_trials=1)
    assert study.trials[0].value == 0.0, "the study itself pops as ever"


def test_a_retry_clone_is_of_no_run(storage: BaseStorage) -> None:
    study = optuna.create_study(storage=storage)
    running_trial(study).set_user_attr(RUN, "100-abc")
    assert fail_and_requeue(study, 0)
    assert study.trials[0].user_attrs[RUN] == "100-abc"
    assert RUN not in study.trials[1].user_attrs
