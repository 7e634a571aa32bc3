"""Task runs that the workers of a study share out: each is made by one of them, for all."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

import optuna
from filelock import FileLock
from optuna.trial import FrozenTrial, TrialState

from optuna_merge.artifacts import SharedFiles
from optuna_merge.exceptions import TrialLostError
from optuna_merge.fitting import Unit
from optuna_merge.trials import (
    UNIT,
    UNIT_NAME,
    claim_waiting,
    companion_study,
    fail_stale_trials,
    is_running,
    optimize_claimed,
)
from optuna_merge.workers._running import (
    requeue_dead_trials,
    run_one,
    runs_folder,
    sigterm_interrupts,
    wait_after,
)

_logger = logging.getLogger(__name__)

_POLL = 1.0  # seconds between two looks at what the others do


class StudySharing:
    """Sharing among workers of one study on any machines; files travel through an artifact store.

    Units are the trials of a companion study, `<name>/fit`, in the same storage, with heartbeats
    and retries. When a worker dies in a unit, another one takes it up, at once where it has the
    same working folder. A unit that fails ends its worker with the error; the others try it once
    each.

    Args:
        study: The study.
        files: Its shared files.
        workdir: This worker's folder.
        claims: Whether this worker does units; else it waits until others have done them.
    """

    def __init__(
        self, study: optuna.Study, files: SharedFiles, workdir: Path, *, claims: bool = True
    ) -> None:
        self._files = files
        self._workdir = workdir
        self._claims = claims
        self._failures = 0  # in a row
        self._units = companion_study(study, f"{study.study_name}/fit")

    def work_off(self, units: Sequence[Unit]) -> None:
        """Do what no other worker is at, then download what the others have made."""
        folder = runs_folder(self._workdir, self._units)
        run = f"fit-{uuid.uuid4().hex[:12]}"
        pending = {unit.key: unit for unit in units}
        told = False
        self._files.pull()
        with FileLock(folder / f"{run}.lock"), sigterm_interrupts():
            while pending:
                requeue_dead_trials(self._units, folder)
                fail_stale_trials(self._units)
                trials = _standing(self._units)
                if self._claims:
                    self._enqueue([unit for key, unit in pending.items() if key not in trials])
                    late = claim_waiting(self._units, partial(_gives_way, pending, trials))
                    if late is not None:  # before its unit counts as done, or nobody takes it up
                        self._run(late, pending, run)
                        continue
                done = [k for k in pending if k in trials and trials[k].state.is_finished()]
                if done:
                    self._files.pull()
                    for key in done:
                        pending.pop(key).work()
                    continue
                number = None
                if self._claims:
                    number = claim_waiting(self._units, lambda t: t.user_attrs[UNIT] in pending)
                if number is not None:
                    self._run(number, pending, run)
                    continue
                if not told:
                    names = ", ".join(unit.name for unit in pending.values())
                    _logger.info("waiting for other workers: %s", names)
                    told = True
                time.sleep(_POLL)

    def _enqueue(self, units: Sequence[Unit]) -> None:
        """Two workers may do this at once: the later of two trials of one unit gives way."""
        for unit in units:
            self._units.enqueue_trial({}, user_attrs={UNIT: unit.key, UNIT_NAME: unit.name})

    def _run(self, number: int, units: Mapping[str, Unit], run: str) -> None:
        optimize = partial(optimize_claimed, self._units, number=number)
        trial = run_one(self._units, self._objective(units), run, optimize)
        failed = trial is None or trial.state == TrialState.FAIL
        self._failures = self._failures + 1 if failed else 0
        if failed:  # by the machine's passing troubles; others are raised
            wait_after(trial, self._failures)

    def _objective(self, units: Mapping[str, Unit]) -> Callable[[optuna.Trial], float]:
        def objective(trial: optuna.Trial) -> float:
            unit = units[trial.user_attrs[UNIT]]
            first = _standing(self._units)[unit.key].number
            if first != trial.number:
                raise optuna.TrialPruned(f"trial {first} does {unit.name} already")
            started = time.perf_counter()
            made = unit.work()
            if not is_running(trial.study, trial.number):
                raise TrialLostError(
                    f"{unit.name} was taken over by another worker while this one was busy"
                )
            self._files.push(made)
            return time.perf_counter() - started

        return objective


def _standing(units: optuna.Study) -> dict[str, FrozenTrial]:
    """By unit the trial that does it: the first one that has not failed or given way."""
    found: dict[str, FrozenTrial] = {}
    for trial in units.get_trials(deepcopy=False):
        if UNIT in trial.user_attrs and trial.state not in (TrialState.FAIL, TrialState.PRUNED):
            found.setdefault(trial.user_attrs[UNIT], trial)
    return found


def _gives_way(
    pending: Collection[str], standing: Mapping[str, FrozenTrial], trial: FrozenTrial
) -> bool:
    """Whether another trial does the pending unit of this one."""
    key = trial.user_attrs.get(UNIT, "")
    return key in pending and key in standing and standing[key].number != trial.number
