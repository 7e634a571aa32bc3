"""What a study knows about previews and truths, as arrays. No torch here."""

from __future__ import annotations

import datetime
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt
from optuna.trial import FrozenTrial, TrialState

from optuna_merge.trials._attributes import WITHDRAWN
from optuna_merge.trials._record import Record, read_trial

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]

_PREVIEWED = (TrialState.PRUNED, TrialState.COMPLETE, TrialState.RUNNING)


@dataclass(frozen=True)
class Series:
    """One quantity at all fidelities; larger is better where `sign` is 1, smaller where -1.

    Attributes:
        preview_weights: `n x T` canonical weights of the previews.
        previews: `n` values.
        truth_weights: `m x T`.
        truths: `m` values.
        preview_noise: `n` variances of the previews' errors, NaN where unknown; None: all unknown.
        pending: `k x T` weights under evaluation, whose values are not known yet.
        sign: 1.0 or -1.0.
        own: The task whose metric this is; None for what is no task's own, as a score.
        anchored: Whether each truth is one that previews equal by construction, `m`. None: of a
            task's metric those of a task alone are, where a merge is that task's own finetune.
    """

    preview_weights: Array
    previews: Array
    truth_weights: Array
    truths: Array
    preview_noise: Array | None = None
    pending: Array | None = None
    sign: float = 1.0
    own: int | None = None
    anchored: Mask | None = None

    @property
    def equal_by_construction(self) -> Mask:
        """`anchored`, or what it is by default."""
        if self.anchored is not None:
            return self.anchored
        alone = self.truth_weights.max(axis=1, initial=0.0) == 1.0
        return np.asarray(alone & (self.own is not None))


_MASKS = ("placed", "live", "previewed", "done", "anchored")


@dataclass(frozen=True)
class _Columns:
    """Records as arrays, a row each; where there is no record, `placed` is False.

    Attributes:
        placed: Whether there are task weights.
        live: Whether the trial runs or waits.
        previewed: Whether its preview counts: of a trial that failed, of a copy, or taken from
            another trial it doesn't.
        done: Whether it is COMPLETE.
        anchored: Whether its previews of the tasks' metrics were made from the truth.
        weights, preview_metrics, preview_se, truth_metrics: `n x T`.
        preview: `n`.
        values: `n x K`, K objectives at least 1.
    """

    placed: Mask
    live: Mask
    previewed: Mask
    done: Mask
    anchored: Mask
    weights: Array
    preview: Array
    values: Array
    preview_metrics: Array
    preview_se: Array
    truth_metrics: Array

    @classmethod
    def empty(cls, n: int, n_tasks: int, n_values: int) -> _Columns:
        shapes = {"preview": (n,), "values": (n, n_values)}
        arrays = {
            column.name: np.zeros(n, dtype=bool)
            if column.name in _MASKS
            else np.full(shapes.get(column.name, (n, n_tasks)), math.nan)
            for column in fields(cls)
        }
        return cls(**arrays)

    def take(self, rows: Indices) -> _Columns:
        return _Columns(*(getattr(self, column.name)[rows] for column in fields(self)))

    def resized(self, n: int, n_values: int) -> _Columns:
        """A copy of n rows and at least `n_values` values; new ones are empty."""
        n_tasks = self.weights.shape[1]
        new = _Columns.empty(n, n_tasks, max(n_values, self.values.shape[1]))
        for column in fields(self):
            old = getattr(self, column.name)[:n]
            getattr(new, column.name)[tuple(map(slice, old.shape))] = old
        return new

    def put(self, row: int, record: Record) -> None:
        self.placed[row] = bool(record.weights)
        if not record.weights:
            return
        self.live[row] = record.state in (TrialState.RUNNING, TrialState.WAITING)
        self.previewed[row] = record.state in _PREVIEWED and not (
            record.is_copy or record.repeat or record.preview_taken
        )
        self.done[row] = record.state == TrialState.COMPLETE
        self.anchored[row] = record.is_at_anchor and record.noted
        self.weights[row] = record.weights
        self.preview[row] = record.preview
        self.values[row] = math.nan
        self.values[row, : len(record.values)] = record.values
        self.preview_metrics[row] = record.preview_metrics
        self.preview_se[row] = record.preview_se
        self.truth_metrics[row] = record.truth_metrics


@dataclass(frozen=True)
class _Known:
    """The trials of a study as they were read last. Never changed: threads share a reader."""

    ended: tuple[datetime.datetime | None, ...]  # None: it may change
    records: tuple[Record | None, ...]
    columns: _Columns

    def has(self, trial: FrozenTrial) -> bool:
        """Whether the trial was read when it had ended already."""
        if trial.number >= len(self.ended):
            return False
        when = self.ended[trial.number]
        return when is not None and when == trial.datetime_complete


_reading = threading.Lock()
"""Threads of one study share its sampler's memory, whose arrays are written in place."""


@dataclass
class TrialReader:
    """Turns trials into a `History`, remembering those that can't change any more.

    The memory only saves time: a fresh reader returns the same history.
    """

    tasks: tuple[str, ...]
    _known: dict[str, _Known] = field(default_factory=dict)

    def read(self, study_name: str, trials: Sequence[FrozenTrial], skip: int = -1) -> History:
        """History of the trials given, ordered by number, without the one numbered `skip`."""
        with _reading:
            known = self._known.get(study_name)
            if known is None:
                known = _Known((), (), _Columns.empty(0, len(self.tasks), 1))
            known = self._known[study_name] = self._update(known, trials)
            kept = [r for r in known.records if r is not None and r.number != skip]
            columns = known.columns.take(np.array([r.number for r in kept], dtype=np.intp))
        return History(self.tasks, kept, columns)

    def _update(self, known: _Known, trials: Sequence[FrozenTrial]) -> _Known:
        size = max((trial.number for trial in trials), default=-1) + 1
        ended: list[datetime.datetime | None] = [None] * size
        records: list[Record | None] = [None] * size
        changed = []
        for trial in trials:
            ended[trial.number] = trial.datetime_complete  # before it is read: others write
            if known.has(trial):
                records[trial.number] = known.records[trial.number]
            else:
                changed.append(trial)
        n_values = max((len(trial.values or ()) for trial in changed), default=1)
        columns = known.columns.resized(size, n_values)
        for trial in changed:
            record = records[trial.number] = read_trial(trial, self.tasks)
            columns.put(trial.number, record)
        return _Known(tuple(ended), tuple(records), columns)


@dataclass(frozen=True)
class History:
    """The records of a study's trials, in order of their numbers."""

    tasks: tuple[str, ...]
    records: list[Record]
    _columns: _Columns = field(compare=False, repr=False)

    def _series(
        self,
        preview: Array,
        truth: Array,
        sign: float,
        noise: Array | None = None,
        own: int | None = None,
    ) -> Series:
        columns = self._columns
        low = columns.placed & columns.previewed & ~np.isnan(preview)
        high = columns.placed & columns.done & ~np.isnan(truth)
        return Series(
            preview_weights=columns.weights[low],
            previews=preview[low],
            truth_weights=columns.weights[high],
            truths=truth[high],
            preview_noise=None if noise is None else noise[low],
            pending=self.pending(),
            sign=sign,
            own=own,
            anchored=self._anchored(high),
        )

    def _anchored(self, rows: Mask) -> Mask:
        """Whether a preview at the weights of each of these trials was made from the truth there.

        Promoted copies and second seeds have no preview of their own.
        """
        columns = self._columns
        weights = columns.weights[rows]
        anchored = np.zeros(len(weights), dtype=bool)
        for anchor in np.unique(columns.weights[columns.placed & columns.anchored], axis=0):
            anchored |= (weights == anchor).all(axis=1)
        return anchored

    def pending(self) -> Array:
        """Weights of the trials that run or wait, `k x T`."""
        return self._columns.weights[self._columns.placed & self._columns.live]

    def visited(self) -> Array:
        """Weights of all trials, failed and waiting ones included, `n x T`."""
        return self._columns.weights[self._columns.placed]

    def previewed(self, *, noisy: bool = False) -> Array:
        """Weights of all previews, those of running trials included, `n x T`.

        Args:
            noisy: Only those that have an error, as their trials say.
        """
        columns = self._columns
        known = ~np.isnan(columns.preview) | ~np.isnan(columns.preview_metrics).all(axis=1)
        if noisy:
            known &= (columns.preview_se > 0).any(axis=1)
        return columns.weights[columns.placed & columns.previewed & known]

    def unpromoted(self) -> Array:
        """Weights of the ended previews of which no finetune was ever queued, `n x T`."""
        promoted = {r.lineage for r in self.records if r.is_copy and r.promotion != WITHDRAWN}
        finetuned = {r.weights for r in self.records if r.is_finetuning or r.values}
        found = [
            r.weights
            for r in self.records
            if r.weights
            and r.state == TrialState.PRUNED
            and not r.is_copy
            and r.lineage not in promoted
            and r.weights not in finetuned
            and (r.reported or r.noted)
        ]
        return np.array(found, dtype=float).reshape(-1, len(self.tasks))

    def score(self, sign: float) -> Series:
        """The single objective: step 0 is the preview, the value of COMPLETE is the truth."""
        columns = self._columns
        return self._series(columns.preview, columns.values[:, 0], sign)

    def metric(self, task: int, sign: float = 1.0) -> Series:
        """The metric of one task, from the numeric user attributes of the trials."""
        columns = self._columns
        preview, error = columns.preview_metrics[:, task], columns.preview_se[:, task]
        truth = columns.truth_metrics[:, task]
        return self._series(preview, truth, sign, error**2, own=task)

    def objective(self, index: int, n_objectives: int, sign: float) -> Series:
        """One of several objectives.

        With as many objectives as tasks, objective i is taken to be task i's, and the attributes
        `preview_<task>` are its previews; otherwise there are no previews.
        """
        columns = self._columns
        nothing = np.full(len(columns.placed), math.nan)
        values = columns.values[:, index] if index < columns.values.shape[1] else nothing
        if n_objectives != len(self.tasks):
            return self._series(nothing, values, sign)
        noise = columns.preview_se[:, index] ** 2
        return self._series(columns.preview_metrics[:, index], values, sign, noise, own=index)
