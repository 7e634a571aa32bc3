"""Running trials so that a worker can be killed at any moment and started again."""

from __future__ import annotations

import errno
import logging
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from optuna_merge._files import sha256_text, write_json
from optuna_merge._optuna import fail_and_requeue
from optuna_merge._tries import FAILURE, HANDED_BACK, RUN
from optuna_merge.exceptions import OptunaMergeError, StorageUnavailableError, TrialLostError
from optuna_merge.roles import Optimize, Role, Watch, announce, check_role, next_trial, sign_off
from optuna_merge.storages._create_storage import masked

_logger = logging.getLogger(__name__)

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
_MAX_FAILURES = 10
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
) -> int:
    """Run trials until this run has finished `n_trials` of them (COMPLETE or PRUNED).

    A run that was killed or interrupted is taken up by the next call with the same number in the
    same working folder, which then finishes only what is missing; its trial is queued again at
    once and goes on from its last checkpoint. Several processes may run on one study; each has
    its own number to finish.

    A trial that raises an error is queued again, and the error ends this run: after three tries
    (`create_storage(max_retry=)`), workers that died in it included, it is given up. A trial that
    could not write, since the disk was full, say, is handed back, which counts for nothing; the
    run waits, and goes on for as long as not ten trials in a row fail.

    With `role="preview"` promoted trials and baselines are left to others; give the objective the
    same role. With `role="finetune"` only those are run, up to `n_trials`; the call waits for them
    and ends early when no more will come: when the caps of the study's `PromotionPruner` are
    reached, or when the study has not changed for `patience` seconds, or for a tenth of them once
    all runs with `role="preview"` have ended.

    Args:
        study: The study.
        objective: Its objective.
        workdir: Where runs are noted; the lock in a run's note tells whether its process lives.
        n_trials: How many to finish; None: until the timeout, or until interrupted.
        timeout: Seconds after which no new trial is started.
        after_trial: Called with every trial that this run finished.
        role: What this worker does, see `Role`.
        patience: Seconds, see above.

    Returns:
        How many trials this run has finished, earlier parts of it included.

    Raises:
        OptunaMergeError: ten trials in a row failed.
        Exception: what the objective raised.
    """
    check_role(role)
    if n_trials is not None and n_trials < 0:
        raise ValueError(f"n_trials must not be negative, got {n_trials}")
    started = time.monotonic()
    folder = runs_folder(workdir, study)
    requeue_dead_trials(study, folder)
    watch, is_over = Watch(study, patience), False
    with _claimed_run(study, folder, n_trials, role) as run, sigterm_interrupts():
        for left in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if left.user_attrs.get(RUN) == run:  # whoever ran it held the lock that we hold now
                _requeue_dead(study, left)
        if role == "preview":
            announce(study, run)
        failures = 0
        while n_trials is None or _finished(study, run) < n_trials:
            if timeout is not None and time.monotonic() - started >= timeout:
                break
            optimize = next_trial(study, role)
            if optimize is None:
                is_over = watch.is_over()
                if is_over:
                    break
                time.sleep(_POLL)
                requeue_dead_trials(study, folder)
                continue
            trial = run_one(study, objective, run, optimize)
            if trial is None or trial.state == TrialState.FAIL:
                failures += 1
                if failures >= _MAX_FAILURES:
                    reason = trial.user_attrs.get(FAILURE, "unknown") if trial else "lost"
                    raise OptunaMergeError(
                        f"{failures} trials in a row failed, the last one because: {reason}"
                    )
                if trial is not None and HANDED_BACK in trial.user_attrs:
                    time.sleep(min(2.0 ** (failures - 1), _LONGEST_WAIT))
                continue
            failures = 0
            if after_trial is not None:
                after_trial(trial)
        count = _finished(study, run)
        if role == "preview":
            sign_off(study, run)
        if n_trials is None or count >= n_trials or is_over:
            (folder / f"{run}.json").unlink(missing_ok=True)
    return count


def runs_folder(workdir: Path, study: optuna.Study) -> Path:
    """Where the runs of a study that work in this folder are noted and locked; is made."""
    folder = workdir / "runs" / sha256_text(study.study_name)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def requeue_dead_trials(study: optuna.Study, folder: Path) -> None:
    """Fail the RUNNING trials of this folder's dead runs and queue them again, at once.

    The heartbeat would do so after its grace period; here the operating system has released the
    dead process's lock already.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        run = trial.user_attrs.get(RUN)
        if run is None or not (folder / f"{run}.lock").exists():
            continue
        lock = FileLock(folder / f"{run}.lock")
        try:
            with lock.acquire(timeout=0):
                _requeue_dead(study, trial)
        except Timeout:
            continue


def _requeue_dead(study: optuna.Study, trial: FrozenTrial) -> None:
    if fail_and_requeue(study, trial, "its worker was killed"):
        _logger.info("trial %d of a killed worker was failed and queued again", trial.number)


def run_one(
    study: optuna.Study,
    objective: Callable[[optuna.Trial], float | Sequence[float]],
    run: str,
    optimize: Optimize,
) -> FrozenTrial | None:
    """Run one trial; None if another worker took it over.

    Args:
        study: The study.
        objective: Its objective.
        run: The run that the trial is noted to belong to; its lock is held.
        optimize: Runs the trial with the objective that it is given.

    Raises:
        Exception: what the objective raised, but for the machine's passing troubles: then the
            trial is handed back.
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
        except KeyboardInterrupt as raised:
            error = raised
            fail_and_requeue(study, number, "its worker was asked to end", counted=False)
            raise
        except (TrialLostError, UpdateFinishedTrialError) as raised:
            # The second where it was lost between the objective's fence and what it wrote next.
            error = raised
            _logger.warning("%s", raised)
            raise
        except StorageUnavailableError as raised:
            error = raised
            raise
        except Exception as raised:
            error = raised
            reason = f"{type(raised).__name__}: {masked(str(raised))}"
            fail_and_requeue(study, number, reason, counted=not _is_passing(raised))
            raise

    try:
        optimize(wrapped)
    except Exception as raised:
        # Optuna can't finish a trial that has been failed already, and says so in many ways.
        if error is None:
            if _was_lost(study, number, raised):
                return None
            raise
    if isinstance(error, (TrialLostError, UpdateFinishedTrialError)):
        return None
    if error is not None and not _is_passing(error):
        raise error
    assert number is not None
    if error is not None:
        _logger.warning("trial %d was handed back: %s", number, error)
    return study.get_trials(deepcopy=False)[number]


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
) -> Iterator[str]:
    """The id of an interrupted run of this size and role, or a new one; locked while in use."""
    wanted = str(n_trials) if role == "any" else f"{role}{n_trials}"
    for note in sorted(folder.glob("*.json")):
        size, _, run = note.stem.partition("-")
        if size != wanted:
            continue
        lock = FileLock(folder / f"{note.stem}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        try:
            if note.exists():  # its process may have finished it just now
                done = _finished(study, note.stem)
                _logger.info("going on with an interrupted run: %d of %s done", done, n_trials)
                yield note.stem
                return
        finally:
            lock.release()
    run = f"{wanted}-{uuid.uuid4().hex[:12]}"
    with FileLock(folder / f"{run}.lock"):
        write_json(folder / f"{run}.json", {"study": study.study_name, "n_trials": n_trials})
        yield run


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
