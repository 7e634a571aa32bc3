"""Everything breaks at once, and nothing is lost: kills, stalls, restarts, full disks, bad stores.

Real worker processes on a real PostgreSQL and two working folders ("machines") of one study. What
is injected, and what became of the trials that it hit, is printed as a table:

    python -m pytest tests/workers/test_chaos.py -m slow -n 0 -s
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from optuna_merge.artifacts import SharedFiles, open_artifact_store
from optuna_merge.pruners import read_ledger
from optuna_merge.storages import create_storage
from optuna_merge.trials import RUN, lineage

WORKER = Path(__file__).with_name("chaos_worker.py")
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
GRACE = 4  # seconds without a sign of life
SEED_ENVIRONMENT = "OPTUNA_MERGE_CHAOS_SEED"


@dataclass(frozen=True)
class Plan:
    """What is done to the workers.

    Attributes:
        workers: Processes; every second one on the machine whose disk gets full.
        n_trials: Trials to finish, per worker.
        steps: Training steps of a finetune.
        kills: How many workers are killed, one at a time.
        pause: Seconds between two kills or stalls.
        stalls: How many workers are stopped for longer than the grace period.
        restarts: How often the database is restarted, by turns orderly and by a crash.
        full: How often the disk is full for `full_seconds`.
    """

    workers: int
    n_trials: int
    steps: int
    kills: int
    pause: float
    stalls: int
    restarts: int
    full: int
    full_seconds: float

    def faults(self, draws: random.Random) -> list[str]:
        faults = ["kill"] * self.kills + ["stall"] * self.stalls + ["full"] * self.full
        draws.shuffle(faults)
        for i in range(self.restarts):
            faults.insert((i + 1) * len(faults) // (self.restarts + 1), "restart")
        return faults


SHORT = Plan(
    workers=3, n_trials=11, steps=60, kills=4, pause=0.5, stalls=1, restarts=1, full=1,
    full_seconds=3.0,
)  # fmt: skip
LONG = Plan(
    workers=6, n_trials=40, steps=300, kills=40, pause=4.0, stalls=6, restarts=2, full=3,
    full_seconds=8.0,
)  # fmt: skip


class Nursery:
    """The process that forks the workers; a worker that dies is started again, as it was."""

    def __init__(self, ends: Path, steps: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", WORKER, str(ends), str(steps), str(GRACE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._flags: dict[str, list[str]] = {}
        self._names: dict[int, str] = {}
        self.living: dict[str, int] = {}
        self.done: set[str] = set()
        self.codes: Counter[int] = Counter()
        self.errors: list[str] = []
        self._changed = threading.Condition()
        for read in (self._read, self._read_errors):
            threading.Thread(target=read, daemon=True).start()

    def start(self, name: str, flags: list[str]) -> None:
        assert self._process.stdin is not None
        with self._changed:
            self._flags[name] = flags
            self._process.stdin.write(json.dumps({"name": name, "flags": flags}) + "\n")
            self._process.stdin.flush()

    def wait(self, names: set[str], timeout: float) -> bool:
        """Until all of these have ended with code 0."""
        with self._changed:
            return self._changed.wait_for(lambda: names <= self.done, timeout)

    def end(self) -> None:
        self._flags.clear()
        for pid in list(self.living.values()):
            os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            word, *rest = json.loads(line)
            with self._changed:
                if word == "started":
                    self.living[rest[0]] = rest[1]
                    self._names[rest[1]] = rest[0]
                elif word == "ended":
                    self._ended(*rest)
                self._changed.notify_all()

    def _ended(self, pid: int, code: int) -> None:
        name = self._names.pop(pid)
        del self.living[name]
        self.codes[code] += 1
        if code == 0:
            self.done.add(name)
        elif name in self._flags:
            flags = self._flags[name]
            threading.Timer(0.3, lambda: self.start(name, flags)).start()

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.errors.append(line)


@dataclass
class Watch:
    """Looks at the study while all goes on: what was COMPLETE once must never change."""

    study: optuna.Study
    complete: dict[int, FrozenTrial] = field(default_factory=dict)

    def look(self) -> list[FrozenTrial]:
        trials = self.study.get_trials()
        for number, seen in self.complete.items():
            assert trials[number] == seen, f"the COMPLETE trial {number} changed"
        for trial in trials:
            if trial.state == TrialState.COMPLETE:
                self.complete.setdefault(trial.number, trial)
        return trials


class Disk:
    """A working folder whose disk can be full: a small file system of its own if root may mount
    one, else a limit on the size of the files that its processes write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
        self.mounted = (
            os.getuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
        )

    @contextmanager
    def full(self, pids: list[int]) -> Iterator[None]:
        balloon = self.folder / "balloon"
        if self.mounted:
            with suppress(OSError), balloon.open("wb", buffering=0) as file:
                while True:
                    file.write(b"\0" * (1 << 16))
        else:
            _limit(pids, 1000)
        try:
            yield
        finally:
            _limit(pids, resource.RLIM_INFINITY)
            balloon.unlink(missing_ok=True)

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)


def _limit(pids: list[int], size: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))


def test_nothing_is_lost_in_a_short_chaos(postgres_server: Any, tmp_path: Path) -> None:
    chaos(SHORT, postgres_server, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nothing_is_lost_in_a_long_chaos(postgres_server: Any, tmp_path: Path) -> None:
    chaos(LONG, postgres_server, tmp_path)


def chaos(plan: Plan, server: Any, folder: Path) -> None:
    draws = random.Random(int(os.environ.get(SEED_ENVIRONMENT, "0")))
    url = server.url
    study = optuna.create_study(
        study_name="chaos", storage=create_storage(url), direction="maximize"
    )
    watch = Watch(study)
    disk = Disk(folder / "b")
    nursery = Nursery(folder / "ends", plan.steps)
    machine = {f"worker-{i}": "ba"[i % 2] for i in range(plan.workers)}
    injected: Counter[str] = Counter()
    try:
        for name in machine:
            nursery.start(name, _flags(url, folder, folder / machine[name], plan.n_trials))
        while len(study.get_trials(deepcopy=False)) < plan.workers + 4:  # they are at work
            time.sleep(0.2)
        for fault in plan.faults(draws):
            living = sorted(nursery.living.items())
            if not living:
                break
            injected[fault] += 1
            _until(lambda: _running(study) >= len(nursery.living) > 0, 3.0)
            name, pid = draws.choice(sorted(nursery.living.items()) or living)
            if fault == "kill":
                _signal(pid, signal.SIGKILL)
            elif fault == "stall":
                _signal(pid, signal.SIGSTOP)
                time.sleep(GRACE + 1.5)
                _signal(pid, signal.SIGCONT)
            elif fault == "restart":
                server.restart(seconds_away=1.0, crash=injected["restart"] % 2 == 0)
            else:
                there = [pid for name, pid in living if machine[name] == "b"]
                known = _handed_back(study)
                with disk.full(there):
                    time.sleep(plan.full_seconds)
                    _until(lambda: _handed_back(study) > known, 10.0)  # noqa: B023
            watch.look()
            time.sleep(plan.pause * draws.uniform(0.5, 1.5))
        assert nursery.wait(set(machine), timeout=900), "".join(nursery.errors[-200:])
        # A fresh machine, with nothing but the study and the artifacts, does what is left.
        fresh = 0
        while fresh == 0 or _waiting(study):
            name, n_trials = f"fresh-{fresh}", max(1, _waiting(study))
            nursery.start(name, _flags(url, folder, folder / "fresh", n_trials))
            assert nursery.wait({name}, timeout=300), "".join(nursery.errors[-200:])
            fresh += 1
        trials = watch.look()
        notes = (folder / "ends").read_text().splitlines()
        table = _table(trials, notes, injected)
        print(f"\n{table}\nexit codes of workers: {dict(nursery.codes)}")
        died = nursery.codes.total() - nursery.codes[0]
        _check(plan, trials, notes, fresh, died)
        store = open_artifact_store(str(folder / "store"))
        shared = SharedFiles(study, store, folder / "checked")
        assert set(shared.pull()) == set(shared.names())  # hashes are checked there
    finally:
        (folder / "log").write_text("".join(nursery.errors))
        nursery.end()
        disk.close()


def _flags(url: str, folder: Path, workdir: Path, n_trials: int) -> list[str]:
    return [
        "--study-name", "chaos", "--storage", url, "--workdir", str(workdir),
        "--artifacts", str(folder / "store"), "--n-trials", str(n_trials), "--seed", "0",
        "--no-second-seed", "--keep-going", "--fraction", "0.25",
    ]  # fmt: skip


def _waiting(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


def _handed_back(study: optuna.Study) -> int:
    return sum("handed_back" in t.user_attrs for t in study.get_trials(deepcopy=False))


def _running(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))


def _until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def _signal(pid: int, which: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, which)


def _check(plan: Plan, trials: list[FrozenTrial], notes: list[str], fresh: int, died: int) -> None:
    finished = [trial for trial in trials if trial.state in FINISHED]
    assert {trial.state for trial in trials} <= {*FINISHED, TrialState.FAIL}
    # Every run finished what it had to, and beyond it what was promoted and left at its end. A
    # worker that is killed when its run is over begins another one when it is started again.
    runs = Counter(t.user_attrs[RUN] for t in finished)
    assert all(count >= int(run.partition("-")[0]) for run, count in runs.items())
    assert 0 <= len(runs) - fresh - plan.workers <= died
    # The budget: exactly a quarter of the previews is finetuned, each once, and every baseline.
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    ledger = read_ledger(trials)
    promoted = Counter(lineage(t) for t in complete if "baseline" not in t.user_attrs)
    assert set(promoted.values()) == {1}
    assert len(promoted) == len(ledger.previews) // 4 == len(ledger.claims)
    baselines = Counter(t.user_attrs["baseline"] for t in complete if "baseline" in t.user_attrs)
    assert baselines == {"uniform": 1, "upright": 1, "rotated": 1, "mirrored": 1}
    assert not _lost(trials)
    # No machine has trained anything to its end twice; across machines, only what was interrupted
    # after it had ended on one of them and before the study knew.
    ends = Counter(tuple(line.split()[1:]) for line in notes if line.startswith("ended"))
    assert set(ends.values()) == {1}
    fresh = [run for where, run in ends if where == "fresh"]
    alone = {run for (where, run) in ends if where != "fresh"} & set(fresh)
    interrupted = [t for t in trials if t.state == TrialState.FAIL and "tries" in t.user_attrs]
    assert len(alone) <= len(interrupted), "the fresh machine trained what the study had"


def _lost(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Failed trials that nothing went on from, though they were not superfluous."""
    retried = {n for trial in trials for n in trial.system_attrs.get("retry_history", [])}
    return [
        trial
        for trial in trials
        if trial.state == TrialState.FAIL
        and trial.number not in retried
        and not trial.user_attrs.get("failure", "").startswith("duplicate baseline")
    ]


_HIT_BY = {
    "kill -9, SIGSTOP": ("was killed", "no sign of life"),  # who is seen first is a race
    "full disk": ("No space left", "File too large", "can't write", "Disk quota"),
    "database restart": ("the database",),
}


def _table(trials: list[FrozenTrial], notes: list[str], injected: Counter[str]) -> str:
    lost = {trial.number for trial in _lost(trials)}
    calls = Counter(line.split()[0] for line in notes)
    failed = {
        trial.number: trial.user_attrs.get("failure", "")
        for trial in trials
        if trial.state == TrialState.FAIL
    }
    times = {
        "kill -9, SIGSTOP": f"{injected['kill']}, {injected['stall']}",
        "full disk": injected["full"],
        "database restart": injected["restart"],
    }
    rows: list[tuple[object, ...]] = [("fault", "injected", "trials hit", "survived", "lost")]
    for fault, words in _HIT_BY.items():
        hit = {n for n, reason in failed.items() if any(word in reason for word in words)}
        rows.append((fault, times[fault], len(hit), len(hit - lost), len(hit & lost)))
    rows.append(("failed store call", calls["failed"], 0, 0, 0))
    lines = [f"{fault!s:18}" + "".join(f"{n!s:>12}" for n in numbers) for fault, *numbers in rows]
    states = dict(Counter(trial.state.name for trial in trials))
    return "\n".join([*lines, f"trials: {states}; store calls: {calls['did'] + calls['failed']}"])
