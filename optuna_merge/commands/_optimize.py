"""`optuna-merge optimize`, and the same flags for every study's own script."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from optuna_merge.commands._command import command
from optuna_merge.commands._definition import load_any
from optuna_merge.commands._flags import Definition, SearchFlags

if TYPE_CHECKING:
    from optuna_merge.definition import StudyDefinition

_logger = logging.getLogger(__name__)


def optimize(definition: Definition, flags: SearchFlags) -> None:
    """Preview many task weights, finetune the most promising ones, print the answer.

    Example: optuna-merge optimize studies/digits/optimize.py --n-trials 50 --workdir work
    """
    found = load_any(definition)
    from optuna_merge.commands._search import search

    search(found, flags)


def script(build: Callable[[], StudyDefinition], *, name: str, n_trials: int) -> None:
    """Run a study's script: the flags are the same for every study.

    Args:
        build: Makes the study's definition; called after the flags are known to be right.
        name: Default of `--study-name`, and of the SQLite file.
        n_trials: Default of `--n-trials`.
    """

    def built(flags: SearchFlags) -> None:
        _logger.info("loading data and model")  # which takes seconds, as the imports do
        from optuna_merge.commands._search import search

        search(build(), flags)

    built.__doc__ = (build.__doc__ or "").strip() or None
    defaults = {"study_name": name, "storage": f"sqlite:///{name}.db", "n_trials": n_trials}
    single = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    single.command()(command(built, **defaults, workdir=Path("workdir") / name))
    single()
