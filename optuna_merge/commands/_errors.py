"""What a user can get wrong ends with a message and an exit code, without a traceback."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable

import typer

ERROR, USAGE, INTERRUPTED = 1, 2, 130
"""Exit codes besides 0; typer ends with that of usage for flags that it can't read."""


def guarded(debug: bool, work: Callable[[], None]) -> None:
    """Run `work`; known errors end with exit code 1, Ctrl-C and SIGTERM with 130.

    Args:
        debug: Errors keep their traceback, and debugging messages are shown.
        work: Does the command's work.
    """
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.INFO,
        format="%(asctime)s %(levelname).1s %(message)s",
        datefmt="%H:%M:%S",
    )
    # By what botorch imports; for its developers, not for who looks on.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    for noisy in ("httpx", "filelock", "urllib3", "matplotlib", "fsspec", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        if "LOCAL_RANK" in os.environ:
            from optuna_merge.distributed import meet

            meet()
        work()
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on from here", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if debug or not _is_known(error):
            raise
        from optuna_merge.storages._create_storage import masked

        typer.echo(f"error: {masked(str(error))}", err=True)
        raise typer.Exit(ERROR) from error


def _is_known(error: Exception) -> bool:
    """Whether the message tells its reader what to do; anything else is a bug of ours."""
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    from optuna_merge.exceptions import OptunaMergeError

    known = (OptunaMergeError, ValueError, TypeError, OSError, ImportError)
    return isinstance(error, (*known, OptunaError, SQLAlchemyError)) or _is_out_of_memory(error)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
