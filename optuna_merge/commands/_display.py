"""What is seen while a study is fitted or runs: live rows in a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor

from optuna_merge.finetuning import RunInfo, Watcher, watched_by
from optuna_merge.pruners import PromotionPruner, prospect
from optuna_merge.trials import BASELINE, PREVIEW_SECONDS, PROMOTED_FROM, study_spending

_logger = logging.getLogger(__name__)

AfterTrial = Callable[[FrozenTrial], None]

_EVERY = 0.5
"""Seconds between two losses that are shown."""


class Tally:
    """What a run of trials has done so far."""

    def __init__(
        self,
        study: optuna.Study,
        total: int | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._study, self._total, self._clock = study, total, clock
        self._started = clock()
        self._preview_seconds, self._flat = 0.0, False
        self.trials = self.previews = self.finetunes = self.promoted = 0

    def add(self, trial: FrozenTrial) -> None:
        """Count a finished trial."""
        self.trials += 1
        attrs = trial.user_attrs
        seconds = attrs.get(PREVIEW_SECONDS, 0.0)
        if seconds and PROMOTED_FROM not in attrs:  # a copy has its preview's attributes
            self.previews += 1
            self._preview_seconds += seconds
        if trial.state == TrialState.COMPLETE:
            self.finetunes += 1
            self.promoted += BASELINE not in attrs
            found = prospect(self._study)
            self._flat = found is not None and found.is_flat

    def summary(self) -> str:
        """Previews with their rate, finetunes, the best score, flat or not, what is spent."""
        rate = ""
        if self._preview_seconds:
            rate = f" ({self.previews / self._preview_seconds:.1f}/s)"
        finetunes = f"{self.finetunes} finetunes ({self.promoted} promoted)"
        rest = [self._best(), "flat" if self._flat else "", self._spent()]
        return ", ".join([f"{self.previews} previews{rate}", finetunes, *filter(None, rest)])

    def time_left(self) -> str:
        """About how long it will take; empty where that is unknown, and at the end."""
        if self._total is None or not 0 < self.trials < self._total:
            return ""
        seconds = (self._clock() - self._started) / self.trials * (self._total - self.trials)
        told = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
        return f"about {told} left"

    def _spent(self) -> str:
        """What is spent and left of a budget; nothing without one."""
        pruner = self._study.pruner
        if not isinstance(pruner, PromotionPruner) or pruner.budget is None:
            return ""
        return f"spent {study_spending(self._study).said(pruner.budget)}"

    def _best(self) -> str:
        if len(self._study.directions) > 1:
            return f"front of {len(self._study.best_trials)}"
        try:
            best = self._study.best_trial
        except ValueError:
            return ""
        return f"best {best.value:.4f} (trial {best.number})"


@contextmanager
def optunas_lines_left_out() -> Iterator[None]:
    """Within this block Optuna logs warnings only."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


@contextmanager
def shown(
    study: optuna.Study, total: int | None, *, every: float = 60.0, console: Console | None = None
) -> Iterator[AfterTrial]:
    """Within this block a study's progress is shown; yields what to call after each trial.

    In a terminal there is a bar over the trials, and one over the steps of the finetune that is
    being trained. Else a line is logged after every finetune, and every so many seconds.
    """
    tally = Tally(study, total)
    console = console or Console(stderr=True)
    with optunas_lines_left_out():
        if console.is_terminal:
            with _live(console, total, tally) as after_trial:
                yield after_trial
        else:
            yield _logging(tally, total, every)


def _logging(tally: Tally, total: int | None, every: float) -> AfterTrial:
    last = time.monotonic()

    def after_trial(trial: FrozenTrial) -> None:
        nonlocal last
        tally.add(trial)
        now = time.monotonic()
        if trial.state == TrialState.COMPLETE or now - last >= every:
            last = now
            of = "" if total is None else f" of {total}"
            told = ", ".join(filter(None, [tally.summary(), tally.time_left()]))
            _logger.info("%d%s trials: %s", tally.trials, of, told)

    return after_trial


@contextmanager
def fit_shown(console: Console | None = None) -> Iterator[None]:
    """Within this block a terminal has a row a training run; elsewhere a line is logged."""
    console = console or Console(stderr=True)
    if console.is_terminal:
        progress = _rows(console)
        with _drawn(console, progress), watched_by(StepBar(progress, keep=True)):
            yield
    else:
        with watched_by(StartLine()):
            yield


def _rows(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
        console=console,
    )


@contextmanager
def _live(console: Console, total: int | None, tally: Tally) -> Iterator[AfterTrial]:
    progress = _rows(console)
    row = progress.add_task("trials", total=total, loss="")
    line = Text()

    def after_trial(trial: FrozenTrial) -> None:
        tally.add(trial)
        progress.update(row, completed=tally.trials)
        line.plain = tally.summary()

    with _drawn(console, Group(progress, line)), watched_by(StepBar(progress)):
        yield after_trial


class StartLine(Watcher):
    """A log line when a finetune begins."""

    def started(self, run: RunInfo) -> None:
        weights = ", ".join(f"{task} {w:.3f}" for task, w in run.weights.items() if w > 0)
        done = f" from step {run.done}" if run.done else ""
        _logger.info("finetuning at %s: %d steps%s", weights, run.steps, done)


class StepBar(Watcher):
    """A row over the steps of the finetune that is being trained, which may stay at its end."""

    shows_progress = True

    def __init__(self, progress: Progress, *, keep: bool = False) -> None:
        self._progress, self._keep = progress, keep
        self._row: Any = None
        self._read = -math.inf

    def started(self, run: RunInfo) -> None:
        what = run.title or "finetune"
        self._row = self._progress.add_task(what, total=run.steps, completed=run.done, loss="")
        self._read = -math.inf

    def stepped(self, step: int, loss: Tensor) -> None:
        self._progress.update(self._row, completed=step)
        now = time.monotonic()
        if now - self._read >= _EVERY:  # reading it waits for the device
            self._read = now
            self._progress.update(self._row, loss=f"loss {loss.item():.4f}")

    def ended(self) -> None:
        (self._progress.stop_task if self._keep else self._progress.remove_task)(self._row)


@contextmanager
def _drawn(console: Console, rows: Progress | Group) -> Iterator[None]:
    """Live rows; log lines that would go to standard error stand above them."""

    class Above:
        def write(self, text: str) -> None:
            if text.strip():
                console.print(Text(text.rstrip("\n")))

        def flush(self) -> None:
            pass

    with Live(rows, console=console, transient=True), ExitStack() as streams:
        for name in (None, "optuna"):
            for handler in logging.getLogger(name).handlers:
                if not isinstance(handler, logging.StreamHandler):
                    continue
                if handler.stream in (sys.stderr, sys.__stderr__):
                    streams.callback(handler.setStream, handler.stream)
                    handler.setStream(Above())
        yield
