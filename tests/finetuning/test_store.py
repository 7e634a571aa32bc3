from __future__ import annotations

import logging
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from helpers import (
    UnreadableData,
    files_below,
    flip_byte,
    largest_file,
    raise_at,
    same,
    toy_columns,
    toy_model,
    toy_settings,
    toy_task,
    toy_tasks,
    truncate,
)

from optuna_merge.finetuning import FinetuneStore, FinishedRun
from optuna_merge.tasks import Task

WEIGHTS = {"red": 0.25, "blue": 0.75}
KEYS = {"red": "key", "blue": "another"}
SETTINGS = toy_settings()


def train(folder: Path, tasks: tuple[Task, ...] | None = None, **options: Any) -> FinishedRun:
    tasks = toy_tasks() if tasks is None else tasks
    return FinetuneStore(folder, KEYS).run(toy_model(tasks), tasks, WEIGHTS, SETTINGS, **options)


def untrainable() -> tuple[Task, ...]:
    """The toy tasks, with training data that can't be read."""
    return tuple(
        toy_task(name, train=UnreadableData(toy_columns(24, classes)), classes=classes)
        for name, classes in (("red", 2), ("blue", 3))
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return train(tmp_path_factory.mktemp("finished"))


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    first = train(tmp_path)
    before = files_below(tmp_path)
    assert len(before) == 1  # the checkpoint is gone
    seen: list[int] = []
    again = train(tmp_path, untrainable(), on_rung=lambda step, _: seen.append(step))
    assert (first.reused, again.reused) == (False, True)
    assert seen == [3, 5, 7]
    assert files_below(tmp_path) == before
    assert again.rungs == first.rungs
    assert again.evaluations == first.rungs[7]
    assert (again.steps, again.seconds) == (first.steps, first.seconds)
    assert same(again.parameters(), first.parameters())


def test_what_was_trained_is_kept(tmp_path: Path) -> None:
    tasks = toy_tasks()
    model = toy_model(tasks)
    weights = {"red": 1.0, "blue": 0.0}
    found = FinetuneStore(tmp_path, KEYS).run(model, tasks, weights, SETTINGS)
    assert same(found.parameters(), model.state(model.trained_names(["red"])))


@pytest.mark.parametrize("rung", [3, 5, 7])
def test_an_interrupted_run_goes_on(rung: int, tmp_path: Path, finished: FinishedRun) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, on_rung=raise_at(rung))
    store = FinetuneStore(tmp_path, KEYS)
    assert store.find(WEIGHTS, SETTINGS) is None
    checkpoint = store.path(WEIGHTS, SETTINGS).with_name("checkpoint.safetensors")
    assert checkpoint.exists()
    found = train(tmp_path, untrainable() if rung == 7 else None)
    assert not found.reused
    assert found.rungs == finished.rungs
    assert same(found.parameters(), finished.parameters())
    assert not checkpoint.exists()


@pytest.mark.parametrize("damage", [truncate, flip_byte, lambda path: flip_byte(path, 40)])
def test_a_damaged_run_is_trained_again(
    damage: Any, tmp_path: Path, finished: FinishedRun, caplog: pytest.LogCaptureFixture
) -> None:
    path = train(tmp_path).path
    damage(path)
    with caplog.at_level(logging.WARNING):
        assert FinetuneStore(tmp_path, KEYS).find(WEIGHTS, SETTINGS) is None
        again = train(tmp_path)
    assert not again.reused
    assert same(again.parameters(), finished.parameters())
    assert f"training again: {path}" in caplog.text


def test_runs_are_told_apart_by_what_they_are(tmp_path: Path) -> None:
    path = FinetuneStore(tmp_path, KEYS).path(WEIGHTS, SETTINGS)
    backwards = dict(reversed(WEIGHTS.items()))
    assert FinetuneStore(tmp_path, KEYS).path(backwards, toy_settings()) == path
    # One is one: a task alone is found whatever number its weight was given as.
    alone = [{"red": 1.0, "blue": 0.0}, {"red": 1, "blue": 0}]
    assert len({FinetuneStore(tmp_path, KEYS).path(w, SETTINGS) for w in alone}) == 1
    others = [
        FinetuneStore(tmp_path, dict.fromkeys(WEIGHTS, "other")).path(WEIGHTS, SETTINGS),
        FinetuneStore(tmp_path, KEYS).path({"red": 0.75, "blue": 0.25}, SETTINGS),
        FinetuneStore(tmp_path, KEYS).path(WEIGHTS, toy_settings(seed=1)),
        FinetuneStore(tmp_path, KEYS).path(WEIGHTS, toy_settings(mixed_precision="bf16")),
    ]
    assert len({path, *others}) == 5


def test_a_second_worker_waits_and_takes_what_the_first_one_made(
    tmp_path: Path, finished: FinishedRun
) -> None:
    path = FinetuneStore(tmp_path, KEYS).path(WEIGHTS, SETTINGS)
    path.parent.mkdir()
    found: list[FinishedRun] = []
    lock = FileLock(path.parent / "lock")
    with lock:
        second = threading.Thread(target=lambda: found.append(train(tmp_path, untrainable())))
        second.start()
        time.sleep(0.3)
        assert second.is_alive() and not found
        shutil.copy(finished.path, path)
    second.join(timeout=20)
    assert found[0].reused
    assert found[0].rungs == finished.rungs


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, finished: FinishedRun) -> None:
    size = finished.path.stat().st_size
    with (
        largest_file(size // 2),
        pytest.raises(OSError, match=r"can't write .*checkpoint.*free disk space \(nothing was"),
    ):
        train(tmp_path)
    assert files_below(tmp_path) == {}
    # Room for the result only, which is smaller than a checkpoint: nothing sound is lost either.
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, on_rung=raise_at(3))
    before = files_below(tmp_path)
    with largest_file(size // 2), pytest.raises(OSError, match="can't write"):
        train(tmp_path)
    assert files_below(tmp_path) == before
    assert same(train(tmp_path).parameters(), finished.parameters())


@pytest.mark.parametrize("rung", [0, 3, 7])
def test_a_run_with_ivon_keeps_its_curvature(rung: int, tmp_path: Path) -> None:
    settings = toy_settings(optimizer="ivon")
    tasks = toy_tasks()
    weights = {"red": 1.0, "blue": 0.0}

    def store(folder: str) -> FinetuneStore:
        return FinetuneStore(tmp_path / folder, KEYS)

    model = toy_model(tasks)
    made = store("whole").run(model, tasks, weights, settings)
    if rung:
        with pytest.raises(KeyboardInterrupt):
            store("parts").run(toy_model(tasks), tasks, weights, settings, on_rung=raise_at(rung))
    again = store("parts").run(toy_model(tasks), tasks, weights, settings)
    found = store("parts").find(weights, settings)
    assert found is not None and found.reused and not again.reused
    assert sorted(found.parameters()) == sorted(model.trained_names(["red"]))
    assert found.parameters().keys() == found.curvature().keys()
    assert same(found.curvature(), made.curvature())
    assert same(found.parameters(), made.parameters())
    assert all(bool((h >= 0).all()) for h in found.curvature().values())


def test_a_run_without_ivon_has_no_curvature(finished: FinishedRun) -> None:
    with pytest.raises(ValueError, match=r"no curvature: the run was not .*optimizer='ivon'"):
        finished.curvature()
