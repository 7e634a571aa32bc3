"""A command that is run in a folder: one at a time, followed to its end, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

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
    deadline = None if time_limit is None else time.monotonic() + time_limit

    def look_in_time() -> None:
        look()
        if deadline is not None and time.monotonic() > deadline:
            raise ProgramError(
                f"the command was stopped after {time_limit:g} seconds, its time limit: "
                f"{_told(arguments, log)}"
            )

    with (folder / "process").open("a+") as held:
        while not _locked(held):
            try:
                look_in_time()
            except BaseException:
                if (pid := _pid(held)) is not None:
                    _stop_group(pid, grace, lambda: _locked(held))
                raise
            time.sleep(_POLL)
        begin()
        look()
        with log.open("ab") as output:
            try:
                process = subprocess.Popen(
                    arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(held.fileno(),),  # the lock lives as long as it does
                    start_new_session=True,
                )
            except OSError as error:
                raise ProgramError(f"{arguments[0]!r} can't be started: {error}") from error
        try:
            _write_pid(held, process.pid)
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
        try:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        except OSError as error:
            raise ProgramError(f"{arguments[0]!r} can't be started: {error}") from error
    try:
        found, _ = process.communicate(timeout=time_limit)
    except subprocess.TimeoutExpired as error:
        raise ProgramError(
            f"the command was stopped after {time_limit:g} seconds, its time limit: "
            f"{_told(arguments, log)}"
        ) from error
    finally:
        _end(process, grace)
    _check_code(process.returncode, arguments, log)
    return found.decode(errors="replace")


def _check_code(code: int, arguments: Sequence[str], log: Path) -> None:
    if code > 0:
        raise ProgramError(f"the command ended with exit code {code}: {_told(arguments, log)}")
    if code < 0:
        name = signal.Signals(-code).name
        raise ProgramError(f"the command was ended by {name}: {_told(arguments, log)}")


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


def _pid(file: IO[str]) -> int | None:
    file.seek(0)
    text = file.read().strip()
    return int(text) if text.isdigit() else None


def _write_pid(file: IO[str], pid: int) -> None:
    file.seek(0)
    file.truncate()
    file.write(str(pid))
    file.flush()
