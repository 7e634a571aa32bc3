"""Processes on one database, some of them killed: the budget is met, nothing runs twice."""

from __future__ import annotations

import queue
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from processes import PythonProcess

from optuna_merge.pruners import read_ledger
from optuna_merge.storages import create_storage

WORKER = Path(__file__).with_name("_worker.py")
N_PREVIEWS = 24
N_KILLS = 4


class Workers:
    """Processes whose lines of output are gathered as they come."""

    def __init__(self, url: str) -> None:
        self._arguments = [url, str(N_PREVIEWS)]
        self.lines: queue.SimpleQueue[tuple[PythonProcess, str]] = queue.SimpleQueue()
        self.processes: list[PythonProcess] = []
        self._readers: list[threading.Thread] = []

    def start(self) -> None:
        process = PythonProcess(WORKER, *self._arguments)
        reader = threading.Thread(target=self._read, args=(process,))
        reader.start()
        self.processes.append(process)
        self._readers.append(reader)

    def _read(self, process: PythonProcess) -> None:
        for line in process.stdout:
            self.lines.put((process, line))

    def join(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        for process in self.processes:
            process.wait(max(0.1, deadline - time.monotonic()))
        for reader in self._readers:
            reader.join()

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.mark.parametrize(("kind", "n_workers"), [("postgres", 8), ("sqlite", 3)])
def test_the_budget_is_met_exactly(
    kind: str,
    n_workers: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    if kind == "postgres":
        url = request.getfixturevalue("postgres_database")
    study = optuna.create_study(study_name="s", storage=create_storage(url), direction="maximize")
    study.enqueue_trial({"w_a": 0.5, "w_b": 0.5}, user_attrs={"baseline": "uniform"})
    workers = Workers(url)
    try:
        for _ in range(n_workers):
            workers.start()
        seen, kills = _kill_some(workers)
        workers.join(timeout=200)
    finally:
        workers.end()
    while not workers.lines.empty():
        seen.append(workers.lines.get()[1])

    assert [p.returncode for p in workers.processes].count(-signal.SIGKILL) == kills
    assert {p.returncode for p in workers.processes} <= {0, -signal.SIGKILL}
    trials = study.get_trials()
    ended = {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    assert {trial.state for trial in trials} <= ended
    previews = read_ledger(trials).previews
    assert len(previews) >= N_PREVIEWS
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    finetuned = Counter(t.params["w_a"] for t in complete if "baseline" not in t.user_attrs)
    assert set(finetuned.values()) == {1}
    assert len(finetuned) == len(previews) // 4
    assert len(complete) == len(finetuned) + 1  # the baseline
    # None lost: each failed trial has a clone.
    retried = {n for trial in trials for n in trial.system_attrs.get("retry_history", [])}
    assert {trial.number for trial in trials if trial.state == TrialState.FAIL} <= retried
    # None twice: what the processes themselves say. Only who was killed, or taken for dead, began,
    # or even ended before the database knew, what another one did again.
    lost = sum(line.startswith("lost") for line in seen)
    for word in ("begin", "end"):
        lines = [line for line in seen if line.startswith(f"{word} finetune")]
        assert len(set(lines)) == len(complete)
        assert len(lines) <= len(complete) + kills + lost


def _kill_some(workers: Workers) -> tuple[list[str], int]:
    """Kill -9, by turns while it trains and anywhere; each is replaced.

    Returns the lines read, and how many were killed: who ended just before is not, and the next
    one is tried.
    """
    draws = random.Random(0)
    seen: list[str] = []
    ready = kills = 0
    while kills < N_KILLS:
        while True:
            process, line = workers.lines.get(timeout=120)
            seen.append(line)
            ready += line.startswith("ready")
            if ready > 1 and line.startswith("begin") and process.poll() is None:
                break
        if kills % 2:
            time.sleep(draws.random() / 10)
            process = draws.choice([p for p in workers.processes if p.poll() is None] or [process])
        process.kill()  # SIGKILL
        if process.wait() == -signal.SIGKILL:
            kills += 1
            workers.start()
    return seen, kills
