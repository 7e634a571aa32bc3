"""Running trials so that a worker can be killed at any moment and started again."""

from __future__ import annotations

import errno
import json
import logging
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from optuna_merge._base.files import sha256_text, write_json
from optuna_merge.exceptions import OptunaMergeError, StorageUnavailableError, TrialLostError
from optuna_merge.pruners import PromotionPruner, stop_reason
from optuna_merge.storages import masked
from optuna_merge.trials import (
    DUPLICATE_OF,
    FAILURE,
    HANDED_BACK,
    RUN,
    claim_waiting,
    fail_and_requeue,
    optimize_claimed,
)
from optuna_merge.workers._roles import (
    Optimize,
    Role,
    Watch,
    announce,
    check_role,
    is_promoted,
    next_trial,
    sign_off,
)

_logger = logging.getLogger(__name__)

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
_MAX_FAILURES = 10
_ENDING = "is_ending"
_LONGEST_WAIT = 60.0  # seconds between two tries while the disk is full

_PASSING = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE}
    | {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT, errno.ENOTCONN}
    | {errno.ECONNRESET, errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH}
)
"""Of an `OSError`: the machine's trouble, which may pass, and not the trial's."""
_POLL = 1.0  # seconds between two looks of a worker that waits for promotions


def run_trials(
    study: optuna.Study,
    objective: Callable[[optuna.Trial], float | Sequence[float]],
    *,
    workdir: Path,
    n_trials: int | None,
    timeout: float | None = None,
    after_trial: Callable[[FrozenTrial], object] | None = None,
    role: Role = "any",
    patience: float = 600.0,
    at_end: Callable[[], object] | None = None,
) -> int:
    """Run trials until this run has finished `n_trials` of them (COMPLETE or PRUNED).

    If a run was killed or interrupted, the next call with the same number in the same working
    folder continues it and finishes only what is missing. The trial of the killed run is queued
    again at once and continues from its last checkpoint. Several processes may run on one study;
    each has its own number to finish.

    At its end, after its number or its timeout, a run finetunes what has been promoted and waits,
    beyond its number, unless another worker is there for it. If the study's `PromotionPruner` has
    a reason to stop (`stop_reason`), the run is over, and promoted trials are left waiting.

    A trial that raises an error is queued again, and the error ends this run. After three tries
    (`create_storage(max_retry=)`), workers that died in the trial included, the trial is given up.
    A trial that could not write, for example because the disk was full, is handed back without
    counting a try. The run then waits and continues, until ten trials in a row have failed.

    With `role="preview"` promoted trials and baselines are left to others. With `role="finetune"`
    only those are run; the call waits for them and ends when no more will come: when the caps of
    the pruner are reached, or when the study has not changed for `patience` seconds, or for a
    tenth of them once all runs with `role="preview"` have ended.

    Args:
        study: The study.
        objective: Its objective.
        workdir: The folder in which runs leave a note; the lock of a note tells whether its
            process lives.
        n_trials: How many trials to finish; None: until the timeout, or until interrupted.
        timeout: Seconds after which no new trial is started, except trials that are promoted
            already.
        after_trial: Called with every trial that this run finished.
        role: What this worker does, see `Role`.
        patience: Seconds, see above.
        at_end: Called when all is done, while the run is still noted: for a report, say. Where
            that is killed or fails, the next call with the same number only calls it again.

    Returns:
        How many trials this run has finished, earlier parts of it included.

    Raises:
        OptunaMergeError: ten trials in a row failed.
        Exception: what the objective raised.
    """
    check_role(role)
    if role == "preview" and not isinstance(study.pruner, PromotionPruner):
        raise ValueError(
            f"role is 'preview', but the study's pruner is {type(study.pruner).__name__}: only "
            f"PromotionPruner ends previews so that other workers can finetune them"
        )
    check_limits(n_trials, timeout, patience)
    started = time.monotonic()
    folder = runs_folder(workdir, study)
    requeue_dead_trials(study, folder)
    watch, is_over = Watch(study, patience), False
    with _claimed_run(study, folder, n_trials, role) as note, sigterm_interrupts():
        _go_on(study, note, role)
        failures = 0
        while True:
            if n_trials != 0 and not note.is_ending and (reason := stop_reason(study)) is not None:
                _logger.info("the search stops: %s", reason)
                is_over = True
                break
            enough = n_trials is not None and _finished(study, note.run) >= n_trials
            if enough or (timeout is not None and time.monotonic() - started >= timeout):
                note.write(is_ending=True)
            optimize = None if n_trials == 0 else _next(study, folder, note, role)
            if optimize is None:
                if note.is_ending or (is_over := watch.is_over()):
                    break
                time.sleep(_POLL)
                requeue_dead_trials(study, folder)
                continue
            trial = run_one(study, objective, note.run, optimize)
            if trial is not None and DUPLICATE_OF in trial.user_attrs:
                continue
            if trial is None or trial.state == TrialState.FAIL:
                failures += 1
                wait_after(trial, failures)
                continue
            failures = 0
            if trial.state == TrialState.COMPLETE and isinstance(study.pruner, PromotionPruner):
                study.pruner.queue_second_seeds(study)  # no preview may come that would do it
            if after_trial is not None:
                after_trial(trial)
        note.write(is_ending=True)
        count = _finished(study, note.run)
        if role == "preview":
            sign_off(study, note.run)
        if at_end is not None:
            at_end()
        if n_trials is None or count >= n_trials or is_over:
            note.path.unlink(missing_ok=True)
        else:
            note.write(is_ending=False)
    return count


def check_limits(n_trials: int | None, timeout: float | None, patience: float) -> None:
    """Raise `ValueError` unless `run_trials` can keep these."""
    for name, limit in (("n_trials", n_trials), ("timeout", timeout), ("patience", patience)):
        if limit is not None and not limit >= 0:  # also refuses NaN
            what = "a number of trials" if name == "n_trials" else "seconds"
            raise ValueError(f"{name} is {limit}, expected {what}, 0 or more")


@dataclass
class _Note:
    """A run's file in the folder of runs, beside its lock; it says that the run is not over."""

    path: Path
    about: dict[str, Any]

    @property
    def run(self) -> str:
        """The run's id."""
        return self.path.stem

    @property
    def is_ending(self) -> bool:
        """Whether the run begins no new trials any more, also after a kill."""
        return bool(self.about.get(_ENDING))

    @classmethod
    def read(cls, path: Path) -> _Note | None:
        """The note, if it is (still) there."""
        try:
            return cls(path, json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def write(self, *, is_ending: bool) -> None:
        """Note whether it begins new trials."""
        if self.about.get(_ENDING) != is_ending:
            self.about[_ENDING] = is_ending
            write_json(self.path, self.about)


@contextmanager
def _lock_of_the_dead(path: Path) -> Iterator[bool]:
    """Whether the process of a lock is dead; this one holds the lock meanwhile."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _go_on(study: optuna.Study, note: _Note, role: Role) -> None:
    """Queue what this run was killed in, and say that it previews."""
    for left in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if left.user_attrs.get(RUN) == note.run:  # whoever ran it held the lock that we hold now
            _requeue_dead(study, left)
    if role == "preview" and not note.is_ending:
        announce(study, note.run)


def _next(study: optuna.Study, folder: Path, note: _Note, role: Role) -> Optimize | None:
    """The next trial, at a run's end only one that has been promoted; or None."""
    if not note.is_ending:
        return next_trial(study, role)
    return _promoted_and_left(study, folder, note.run) if role == "any" else None


def wait_after(trial: FrozenTrial | None, failures: int) -> None:
    """After so many failed trials in a row: raise, or wait where this one was handed back."""
    if failures >= _MAX_FAILURES:
        reason = trial.user_attrs.get(FAILURE, "unknown") if trial else "lost"
        raise OptunaMergeError(
            f"{failures} trials in a row failed, the last one because: {reason}"
        )
    if trial is not None and HANDED_BACK in trial.user_attrs:
        time.sleep(min(2.0 ** (failures - 1), _LONGEST_WAIT))


def _promoted_and_left(study: optuna.Study, folder: Path, run: str) -> Optimize | None:
    """Claim a finetune that has been promoted and that nobody else is there for; or None.

    Of several runs that end at once each says so before it looks for others.
    """
    requeue_dead_trials(study, folder)
    if _others_work(study, folder, run):
        return None
    number = claim_waiting(study, is_promoted)
    return None if number is None else partial(optimize_claimed, study, number=number)


def _others_work(study: optuna.Study, folder: Path, run: str) -> bool:
    """Whether another run of the study has a trial, or is alive in this folder and begins some.

    Runs that only preview never finetune. A trial without a run is one whose worker was killed
    before it had weights, or that of a worker which is about to say so in its folder.
    """
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    of_runs = {name for t in running if (name := t.user_attrs.get(RUN)) is not None}
    if any(name != run and not _only_previews(name) for name in of_runs):
        return True
    for path in folder.glob("*.json"):
        note = _Note.read(path)
        if note is None or note.run == run or note.is_ending or _only_previews(note.run):
            continue
        with _lock_of_the_dead(path.with_suffix(".lock")) as is_dead:
            if not is_dead:
                return True
    return False


def _only_previews(run: str) -> bool:
    return run.startswith("preview")  # as `_claimed_run` names them


def runs_folder(workdir: Path, study: optuna.Study) -> Path:
    """Where the runs of a study that work in this folder are noted and locked; is made."""
    folder = workdir / "runs" / sha256_text(study.study_name)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def requeue_dead_trials(study: optuna.Study, folder: Path) -> None:
    """Fail the RUNNING trials of this folder's dead runs and queue them again, at once."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        lock = folder / f"{trial.user_attrs.get(RUN)}.lock"
        if lock.exists():
            with _lock_of_the_dead(lock) as is_dead:
                if is_dead:
                    _requeue_dead(study, trial)


def _requeue_dead(study: optuna.Study, trial: FrozenTrial) -> None:
    if fail_and_requeue(study, trial, "its worker was killed"):
        _logger.info("trial %d of a killed worker was failed and queued again", trial.number)


def run_one(
    study: optuna.Study,
    objective: Callable[[optuna.Trial], float | Sequence[float]],
    run: str,
    optimize: Optimize,
) -> FrozenTrial | None:
    """Run one trial of a run, whose lock is held; None if another worker took the trial over.

    What the objective raised is raised, but for the machine's passing troubles: then the trial is
    handed back.
    """
    number: int | None = None
    error: BaseException | None = None

    def wrapped(trial: optuna.Trial) -> float | Sequence[float]:
        nonlocal number, error
        number = trial.number
        try:
            trial.set_user_attr(RUN, run)
            return objective(trial)
        except optuna.TrialPruned:
            raise
        except BaseException as raised:
            error = raised
            _give_up(study, number, raised)
            raise

    try:
        optimize(wrapped)
    except Exception as raised:
        # Optuna can't finish a trial that has been failed already, and says so in many ways.
        if error is None:
            if _was_lost(study, number, raised):
                return None
            raise
    if isinstance(error, _LOST):
        return None
    if error is not None and not _is_passing(error):
        raise error
    assert number is not None
    if error is not None:
        _logger.warning("trial %d was handed back: %s", number, error)
    return study.get_trials(deepcopy=False)[number]


_LOST = (TrialLostError, UpdateFinishedTrialError)
"""The second where it was lost between the objective's fence and what the objective wrote next."""


def _give_up(study: optuna.Study, number: int, error: BaseException) -> None:
    """Queue the trial of an objective that raised again, unless another worker has it."""
    if isinstance(error, KeyboardInterrupt):
        fail_and_requeue(study, number, "its worker was asked to end", counted=False)
    elif isinstance(error, _LOST):
        _logger.warning("%s", error)
    elif isinstance(error, Exception) and not isinstance(error, StorageUnavailableError):
        reason = f"{type(error).__name__}: {masked(str(error))}"
        fail_and_requeue(study, number, reason, counted=not _is_passing(error))


def _was_lost(study: optuna.Study, number: int | None, error: Exception) -> bool:
    """Whether Optuna raised since another worker had failed the trial, before or after it ran."""
    if number is None:
        return isinstance(error, UpdateFinishedTrialError)
    return study.get_trials(deepcopy=False)[number].state == TrialState.FAIL


def _is_passing(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _PASSING


def _finished(study: optuna.Study, run: str) -> int:
    trials = study.get_trials(deepcopy=False, states=_FINISHED)
    return sum(trial.user_attrs.get(RUN) == run for trial in trials)


@contextmanager
def _claimed_run(
    study: optuna.Study, folder: Path, n_trials: int | None, role: Role
) -> Iterator[_Note]:
    """The note of an interrupted run of this size and role, or of a new one; locked meanwhile."""
    wanted = str(n_trials) if role == "any" else f"{role}{n_trials}"
    for path in sorted(folder.glob("*.json")):
        if path.stem.partition("-")[0] != wanted:
            continue
        with _lock_of_the_dead(path.with_suffix(".lock")) as is_dead:
            found = _Note.read(path) if is_dead else None
            if found is not None:  # its process may have finished it just now
                done = _finished(study, found.run)
                _logger.info("going on with an interrupted run: %d of %s done", done, n_trials)
                yield found
                return
    run = f"{wanted}-{uuid.uuid4().hex[:12]}"
    with FileLock(folder / f"{run}.lock"):
        note = _Note(folder / f"{run}.json", {"study": study.study_name, "n_trials": n_trials})
        note.write(is_ending=False)
        yield note


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Within this block SIGTERM ends a trial as Ctrl-C does: the trial is queued again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
