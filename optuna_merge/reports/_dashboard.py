"""What optuna-dashboard shows of a study besides its trials: figures and notes, kept fresh."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState

from optuna_merge import visualization as plots
from optuna_merge._base.lazy import need
from optuna_merge.reports._notes import OURS, study_note, trial_note
from optuna_merge.reports._reading import Reading
from optuna_merge.trials import TrialHandle

if TYPE_CHECKING:
    import plotly.graph_objects as go

_logger = logging.getLogger(__name__)

MAX_BYTES = 100_000
"""A figure in a study is no larger: the dashboard loads all of them at every refresh."""

_MOST_TIME = 0.05
"""Share of a worker's time that updates may take."""

_MAX_POINTS = 500
_DIGITS = 5


class Dashboard:
    """Keeps a study's figures and notes fresh while it runs; for `run_trials(after_trial=...)`.

    Args:
        study: The study.
        workdir: Working folder; workers there take turns.
        every: Seconds between two updates at least, more where updates would take over a twentieth
            of the time; the first is made at once.

    Raises:
        ImportError: optuna-dashboard or plotly is missing; `pip install optuna-merge[dashboard]`.
    """

    def __init__(self, study: optuna.Study, workdir: Path, *, every: float = 30.0) -> None:
        # Both are imported with the first update: they take longer than a small preview.
        for package in ("optuna_dashboard", "plotly"):
            need(package, "dashboard", "what the dashboard shows")
        self._study = study
        self._lock = FileLock(workdir / "dashboard.lock")
        self._every = every
        self._due = -math.inf

    def __call__(self, trial: FrozenTrial) -> None:
        """After a finetune: update, if that is due. No worker ends because of a figure."""
        if trial.state == TrialState.COMPLETE and time.monotonic() >= self._due:
            try:
                self.update()
            except Exception:
                _logger.warning("the dashboard's figures are not updated", exc_info=True)

    def update(self) -> None:
        """Update now, unless another worker is doing so."""
        start = time.monotonic()
        try:
            with self._lock.acquire(timeout=0):
                update_dashboard(self._study)
        except Timeout:
            return
        now = time.monotonic()
        self._due = now + max(self._every, (now - start) / _MOST_TIME)


def update_dashboard(study: optuna.Study) -> None:
    """Write the study's figures, its note, and a note for each finetuned trial without one.

    Figures are at most 100 KB each: numbers have five digits, and of more than 500 previews a
    part is drawn. A note that somebody has written is left alone.

    Raises:
        ImportError: optuna-dashboard or plotly is missing; `pip install optuna-merge[dashboard]`.
    """
    from optuna_dashboard import get_note, save_note, save_plotly_graph_object

    try:
        reading = Reading.of(study)
    except ValueError:  # no trial with task weights yet
        return
    for name, figure in _figures(reading):
        save_plotly_graph_object(study, figure, graph_object_id=name)
    note = get_note(study)
    if not note or OURS in note:
        save_note(study, study_note(reading))
    for outcome in reading.findings.truths:
        handle = TrialHandle(study, outcome.trial)
        if not get_note(handle):
            save_note(handle, trial_note(reading.findings, outcome))


def _figures(reading: Reading) -> Iterator[tuple[str, go.Figure]]:
    import plotly.graph_objects as go

    study, several = reading.study, reading.findings.several
    first = reading.findings.tasks[0] if several else None
    makers: list[tuple[str, Callable[[], go.Figure]]] = [
        ("task-weights", partial(plots.plot_task_weights, study, first, max_points=_MAX_POINTS)),
        ("preview-truth", partial(plots.plot_preview_truth, study, first)),
        ("cost", partial(plots.plot_cost, study)),
        ("front", partial(plots.plot_front, study))
        if several
        else ("baselines", partial(plots.plot_baselines, study)),
    ]
    for name, make in makers:
        with contextlib.suppress(ValueError):  # nothing of that kind is known yet
            parts = json.loads(make().to_json())
            figure = go.Figure(data=_rounded(parts["data"]), layout=parts["layout"])
            size = len(figure.to_json())
            if size <= MAX_BYTES:
                yield name, figure
            else:
                _logger.warning("figure %s is left out of the dashboard: %d bytes", name, size)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
