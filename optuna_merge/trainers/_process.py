"""A command that is run in a folder: one at a time, followed to its end, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from optuna_merge.exceptions import ProgramError

_POLL = 0.2
_QUOTED = 15
"""Lines of a failed command's output that its error quotes."""


def follow(
    arguments: Sequence[str],
    folder: Path,
    look: Callable[[], None],
    *,
    begin: Callable[[], None],
    time_limit: float | None,
    grace: float,
) -> None:
    """Run a command to its end; its output is added to log.txt in the folder.

    A command that an earlier call has started, and that still runs since this process was killed,
    holds a lock in the folder, and is followed first. Then it is started again, to say by its exit
    code whether all is well. `look` is called several times a second, and once after the end; what
    it raises stops the command. `begin` is called before it is started.
    """
    log = folder / "log.txt"
    started = time.monotonic()

    def look_in_time() -> None:
        look()
        if time_limit is not None and time.monotonic() > started + time_limit:
            raise _too_late(time_limit, arguments, log)

    with (folder / "process").open("a+") as held:
        while not _locked(held):
            try:
                look_in_time()
            except BaseException:
                held.seek(0)
                if (pid := held.read().strip()).isdigit():
                    _stop_group(int(pid), grace, lambda: _locked(held))
                raise
            time.sleep(_POLL)
        begin()
        look()
        with log.open("ab") as output:
            # The lock lives as long as the process that it is passed to.
            process = _started(arguments, output, subprocess.STDOUT, (held.fileno(),))
        try:
            held.seek(0)
            held.truncate()
            held.write(str(process.pid))
            held.flush()
            while process.poll() is None:
                look_in_time()
                time.sleep(_POLL)
            look()
        finally:
            _end(process, grace)
    _check_code(process.returncode, arguments, log)


def output_of(
    arguments: Sequence[str], log: Path, *, time_limit: float | None, grace: float
) -> str:
    """Run a command to its end, and give its standard output; its errors go to the log."""
    with log.open("wb") as errors:
        process = _started(arguments, subprocess.PIPE, errors)
    try:
        found, _ = process.communicate(timeout=time_limit)
    except subprocess.TimeoutExpired as error:
        raise _too_late(error.timeout, arguments, log) from error
    finally:
        _end(process, grace)
    _check_code(process.returncode, arguments, log)
    return found.decode(errors="replace")


def _started(
    arguments: Sequence[str], output: Any, errors: Any, passed: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            pass_fds=passed,
            start_new_session=True,
        )
    except OSError as error:
        raise ProgramError(f"{arguments[0]!r} can't be started: {error}") from error


def _too_late(seconds: float, arguments: Sequence[str], log: Path) -> ProgramError:
    how = f"was stopped after {seconds:g} seconds, its time limit"
    return ProgramError(f"the command {how}: {_told(arguments, log)}")


def _check_code(code: int, arguments: Sequence[str], log: Path) -> None:
    if code:
        name = "" if code > 0 else signal.Signals(-code).name
        how = f"was ended by {name}" if name else f"ended with exit code {code}"
        raise ProgramError(f"the command {how}: {_told(arguments, log)}")


def _told(arguments: Sequence[str], log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_QUOTED:]
    quoted = "\n".join(f"  {line}" for line in lines) or "  (nothing)"
    return f"{' '.join(arguments)}\nThe last lines in {log}:\n{quoted}"


def _end(process: subprocess.Popen[bytes], grace: float) -> None:
    """End a command, if it hasn't, and what it has started and left running."""
    _stop_group(
        process.pid, grace, lambda: process.poll() is not None and not _is_alive(process.pid)
    )
    process.wait()


def _stop_group(pid: int, grace: float, is_over: Callable[[], bool]) -> None:
    """Ask a command and its children to end, and end them after the grace."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        if is_over():
            return
        try:
            os.killpg(pid, how)
        except ProcessLookupError:
            return
        until = time.monotonic() + grace
        while not is_over() and time.monotonic() < until:
            time.sleep(0.02)


def _is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _locked(file: IO[str]) -> bool:
    """Whether the lock is held now; it is another process's otherwise."""
    import fcntl  # not on Windows

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
