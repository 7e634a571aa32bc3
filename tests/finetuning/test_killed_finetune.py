"""A finetune that is killed (SIGKILL) at random points ends, bit for bit, as if it never was."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import same, toy_model, toy_settings, toy_tasks

from optuna_merge.finetuning import FinetuneStore, FinishedRun, _training

WEIGHTS = {"red": 0.3, "blue": 0.7}
KEYS = {"red": "key", "blue": "another"}
N_KILLS = 12


def run(folder: Path, optimizer: str) -> FinishedRun:
    tasks = toy_tasks()
    settings = toy_settings(optimizer=optimizer, steps=9)
    return FinetuneStore(folder, KEYS).run(toy_model(tasks), tasks, WEIGHTS, settings)


def killed(job: Callable[[], object], at: int) -> bool:
    """Do the job in a process that is killed at its event `at`; whether it was.

    Events are before and after each training step's beginning, each flush of a file or folder to
    the disk, and each renaming of a finished file.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _kill_at(at)
            job()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def _kill_at(at: int) -> None:
    events = 0

    def event() -> None:
        nonlocal events
        events += 1
        if events == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            event()
            result = function(*arguments, **more)
            event()
            return result

        return call

    _training.seed_draws = counted(_training.seed_draws)
    os.fsync = counted(os.fsync)
    Path.replace = counted(Path.replace)  # type: ignore[method-assign]


@pytest.mark.parametrize("optimizer", ["adamw", "ivon"])
@pytest.mark.parametrize("seed", [0, 1])
def test_random_kills_change_no_bit(optimizer: str, seed: int, tmp_path: Path) -> None:
    expected = run(tmp_path / "whole", optimizer)  # first: what it imports, children have then
    draws = random.Random(seed)
    kills = 0
    for _ in range(200):
        if kills == N_KILLS:
            break
        done = not killed(lambda: run(tmp_path / "killed", optimizer), draws.randint(1, 16))
        kills += not done
        if done:  # finished before it could be killed: once more from the start
            for path in (tmp_path / "killed").glob("*/model.safetensors"):
                path.unlink()
    assert kills == N_KILLS
    found = run(tmp_path / "killed", optimizer)
    assert same(found.parameters(), expected.parameters())
    assert found.rungs == expected.rungs
    assert found.steps == expected.steps == 9
    if optimizer == "ivon":
        assert same(found.curvature(), expected.curvature())
    assert all(torch.isfinite(tensor).all() for tensor in found.parameters().values())
    left = {path.name for path in (tmp_path / "killed").rglob("*") if path.is_file()}
    assert left == {"model.safetensors", "lock"}  # nothing of the writes that were killed
