"""Python processes that begin at once: each is forked from one that has imported the libraries.

A fresh interpreter imports torch and transformers for seconds, and tests of workers start dozens.
The processes are as real as others: with memory, files and signals of their own.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import sys
import threading
import warnings
from multiprocessing.connection import Connection

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        *("torch", "transformers", "datasets", "scipy.stats", "sklearn.datasets", "sqlalchemy"),
        *("optuna", "optuna_merge.cli", "optuna_merge.fitting", "optuna_merge.reports"),
        *("optuna_merge.objective", "optuna_merge.search", "optuna_merge.workers"),
    ]
)


class PythonProcess:
    """`python -W ignore ARGUMENTS`, with what tests use of `subprocess.Popen`.

    Args:
        arguments: A script's path, or `-c` and code; then their arguments.
        environment: Variables besides those of this process.
    """

    def __init__(self, *arguments: object, **environment: str) -> None:
        theirs_in, self._in = _CONTEXT.Pipe(duplex=False)
        self._out, theirs_out = _CONTEXT.Pipe(duplex=False)
        self._error, theirs_error = _CONTEXT.Pipe(duplex=False)
        theirs = (theirs_in, theirs_out, theirs_error)
        self._process = _CONTEXT.Process(
            target=_run, args=([str(a) for a in arguments], os.environ | environment, theirs)
        )
        self._process.start()
        for connection in theirs:  # so that reading ends when the process does
            connection.close()
        self.stdin = os.fdopen(self._in.fileno(), "w", closefd=False)
        self.stdout = os.fdopen(self._out.fileno(), closefd=False)
        self._errors: list[str] = []
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    poll = returncode.fget

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise TimeoutError(f"process {self.pid} runs after {timeout} seconds")
        return self.returncode

    def communicate(self, given: str = "", timeout: float = 300) -> tuple[str, str]:
        """All of standard output and error; the process is killed when the time is up."""
        late = threading.Timer(timeout, self.kill)
        late.start()
        try:
            if not self._in.closed:
                self.stdin.write(given)
                self.stdin.close()
                self._in.close()
            out = self.stdout.read()
            self._reader.join()
            self._process.join()
        finally:
            late.cancel()
        return out, "".join(self._errors)

    def _read_errors(self) -> None:
        with os.fdopen(self._error.fileno(), closefd=False) as lines:
            self._errors.extend(lines)


def _run(arguments: list[str], environment: dict[str, str], own: tuple[Connection, ...]) -> None:
    for descriptor, connection in enumerate(own):
        os.dup2(connection.fileno(), descriptor)
        connection.close()
    sys.stdin = os.fdopen(0, closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    warnings.simplefilter("ignore")
    gc.freeze()  # as `conftest` does: every finetune ends with a garbage collection
    script, *rest = arguments
    if script == "-c":
        code, *rest = rest
        sys.argv = ["-c", *rest]
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [script, *rest]
        sys.path.insert(0, os.path.dirname(script))
        runpy.run_path(script, run_name="__main__")
