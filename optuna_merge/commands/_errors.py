"""Every error of a command ends with one message and an exit code, without a traceback."""

from __future__ import annotations

import logging
import traceback
import warnings
from collections.abc import Callable

import typer

ERROR, USAGE, INTERRUPTED = 1, 2, 130
"""Exit codes besides 0; typer ends with that of usage for flags that it can't read."""


def guarded(debug: bool, work: Callable[[], None]) -> None:
    """Run `work`; errors end with a message and exit code 1, Ctrl-C and SIGTERM with 130.

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
        work()
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on from here", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except (typer.Exit, typer.Abort, typer.BadParameter):  # how typer ends, that of usage with 2
        raise
    except Exception as error:
        if debug:
            raise
        from optuna_merge.storages import masked

        typer.echo(f"error: {masked(message(error))}", err=True)
        raise typer.Exit(ERROR) from error


def message(error: Exception) -> str:
    """What to say of an error of any kind.

    The message of an error that this package raises is made for who reads it. Of one from
    elsewhere its type is named, too, and how to see where it comes from.
    """
    if _is_out_of_memory(error):
        return (
            f"out of memory ({_first_line(error)}); take a smaller finetuning.batch_size or "
            f"shorter texts, or end what else uses the memory"
        )
    if isinstance(error, ModuleNotFoundError) and not _is_ours(error):
        return (
            f"the package {error.name!r} is not installed ({error}): install it, or the extra of "
            f"optuna-merge that has it"
        )
    cause = _database_error(error)
    if cause is not None:
        return f"the study's database answered {type(cause).__name__}: {_first_line(cause)}{_SEE}"
    if _is_ours(error):
        # A KeyError shows its message as Python would write it, in quotes.
        return str(error.args[0] if isinstance(error, KeyError) else error)
    return f"{type(error).__name__}{f': {error}' if str(error) else ''}{_SEE}"


_SEE = " (--debug shows where it comes from)"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _is_ours(error: Exception) -> bool:
    """Whether a `raise` of this package made the message, and not a wrong call or look-up."""
    from optuna_merge.exceptions import OptunaMergeError

    if isinstance(error, OptunaMergeError):
        return True
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return False
    frame, _ = frames[-1]
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    line = traceback.extract_tb(error.__traceback__)[-1].line or ""
    return package == __name__.partition(".")[0] and line.startswith("raise")


def _database_error(error: Exception) -> BaseException | None:
    """The driver's own error, without statement and values, where the database gave one."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError

    if isinstance(error, StorageInternalError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, DBAPIError):
        return error.orig or error
    return error if isinstance(error, (SQLAlchemyError, StorageInternalError)) else None


def _is_out_of_memory(error: Exception) -> bool:
    # PyTorch's name for a GPU's, and its words for the CPU's.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )
