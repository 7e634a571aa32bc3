"""What a study knows about previews and truths, as arrays. No torch here."""

from __future__ import annotations

import datetime
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from optuna.trial import FrozenTrial, TrialState

from optuna_merge._names import REFINED as REFINED
from optuna_merge._optuna import PROMOTED_AT, PROMOTED_FROM
from optuna_merge.weights import canonical_weights, param_name

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]

_PREVIEWED = (TrialState.PRUNED, TrialState.COMPLETE, TrialState.RUNNING)
_MIN_LEVEL = 2  # refined previews of which a model can be made


class Level(NamedTuple):
    """One quantity at one fidelity between preview and truth: `n x T` weights and `n` values."""

    weights: Array
    values: Array


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
        refined: The refined previews, from the fewest training steps to the most.
    """

    preview_weights: Array
    previews: Array
    truth_weights: Array
    truths: Array
    preview_noise: Array | None = None
    pending: Array | None = None
    sign: float = 1.0
    refined: tuple[Level, ...] = ()


@dataclass(frozen=True)
class Refined:
    """A refined preview of one trial: score and metrics; NaN stands for "not known"."""

    score: float
    metrics: tuple[float, ...]


@dataclass(frozen=True)
class Record:
    """One trial, reduced to what the models need. NaN stands for "not known"."""

    number: int
    state: TrialState
    weights: tuple[float, ...]
    params: tuple[float, ...]  # as suggested: NaN where a parameter is missing
    preview: float
    values: tuple[float, ...]
    preview_metrics: tuple[float, ...]
    preview_se: tuple[float, ...]
    truth_metrics: tuple[float, ...]
    is_copy: bool
    partial_metrics: tuple[float, ...]  # estimates, of a preview that was raced out
    partial_se: tuple[float, ...]
    refined: Mapping[int, Refined]  # by training steps; of a copy those that are its own


def _number(value: object) -> float:
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    return math.nan


def read_trial(trial: FrozenTrial, tasks: Sequence[str]) -> Record | None:
    """The record of a trial, or None where it has no (valid) task weights."""
    known = trial.params
    if not known:  # enqueued, or popped from the queue and not yet suggested
        known = trial.system_attrs.get("fixed_params", {})
    params = tuple(_number(known.get(param_name(t))) for t in tasks)
    if all(map(math.isnan, params)):
        return None
    try:
        weights = canonical_weights(params, tasks)
    except ValueError:  # a parameter is missing, or negative in another user's search space
        weights = ()
    attrs = trial.user_attrs
    done = trial.state == TrialState.COMPLETE
    return Record(
        number=trial.number,
        state=trial.state,
        weights=weights,
        params=params,
        preview=_number(trial.intermediate_values.get(0)),
        values=tuple(_number(v) for v in trial.values or ()) if done else (),
        preview_metrics=tuple(_number(attrs.get(f"preview_{t}")) for t in tasks),
        preview_se=tuple(_number(attrs.get(f"preview_{t}_se")) for t in tasks),
        truth_metrics=tuple(_number(attrs.get(f"truth_{t}")) if done else math.nan for t in tasks),
        is_copy=PROMOTED_FROM in attrs,
        partial_metrics=tuple(_number(attrs.get(f"partial_preview_{t}")) for t in tasks),
        partial_se=tuple(_number(attrs.get(f"partial_preview_{t}_se")) for t in tasks),
        refined=_read_refined(trial, tasks),
    )


def _read_refined(trial: FrozenTrial, tasks: Sequence[str]) -> dict[int, Refined]:
    attrs = trial.user_attrs
    inherited = attrs.get(PROMOTED_AT, 0)
    return {
        step: Refined(
            _number(score),
            tuple(_number(attrs.get(REFINED.format(step=step, task=t))) for t in tasks),
        )
        for step, score in trial.intermediate_values.items()
        if step > inherited and REFINED.format(step=step, task=tasks[0]) in attrs
    }


_MASKS = ("placed", "live", "previewed", "done")


@dataclass(frozen=True)
class _Columns:
    """Records as arrays, a row each; where there is no record, `placed` is False.

    Attributes:
        placed: Whether there are task weights.
        live: Whether the trial runs or waits.
        previewed: Whether its preview counts: of a trial that failed, or of a copy, it doesn't.
        done: Whether it is COMPLETE.
        weights, preview_metrics, preview_se, truth_metrics, partial_metrics, partial_se: `n x T`.
        preview: `n`.
        values: `n x K`, K objectives at least 1.
    """

    placed: Mask
    live: Mask
    previewed: Mask
    done: Mask
    weights: Array
    preview: Array
    values: Array
    preview_metrics: Array
    preview_se: Array
    truth_metrics: Array
    partial_metrics: Array
    partial_se: Array

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

    def put(self, row: int, record: Record | None) -> None:
        self.placed[row] = record is not None and bool(record.weights)
        if record is None or not record.weights:
            return
        self.live[row] = record.state in (TrialState.RUNNING, TrialState.WAITING)
        self.previewed[row] = record.state in _PREVIEWED and not record.is_copy
        self.done[row] = record.state == TrialState.COMPLETE
        self.weights[row] = record.weights
        self.preview[row] = record.preview
        self.values[row] = math.nan
        self.values[row, : len(record.values)] = record.values
        for name in ("preview", "partial"):
            getattr(self, f"{name}_metrics")[row] = getattr(record, f"{name}_metrics")
            getattr(self, f"{name}_se")[row] = getattr(record, f"{name}_se")
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
            rows = [i for i, r in enumerate(known.records) if r is not None and i != skip]
            records = [r for i in rows if (r := known.records[i]) is not None]
            columns = known.columns.take(np.array(rows, dtype=np.intp))
        return History(self.tasks, records, columns)

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
        refined: Callable[[Refined], float] = lambda r: math.nan,
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
            refined=tuple(self._levels(refined)),
        )

    @cached_property
    def _refined(self) -> list[Record]:
        return [r for r in self.records if r.refined and r.weights and r.state in _PREVIEWED]

    def _levels(self, value: Callable[[Refined], float]) -> Iterator[Level]:
        for step in sorted({step for r in self._refined for step in r.refined}):
            found = [
                (r.weights, v)
                for r in self._refined
                if step in r.refined and not math.isnan(v := value(r.refined[step]))
            ]
            if len(found) >= _MIN_LEVEL:
                yield Level(np.array([w for w, _ in found]), np.array([v for _, v in found]))

    def pending(self) -> Array:
        """Weights of the trials that run or wait, `k x T`."""
        return self._columns.weights[self._columns.placed & self._columns.live]

    def visited(self) -> Array:
        """Weights of all trials, failed and waiting ones included, `n x T`."""
        return self._columns.weights[self._columns.placed]

    def score(self, sign: float) -> Series:
        """The single objective: step 0 is the preview, the value of COMPLETE is the truth."""
        columns = self._columns
        return self._series(columns.preview, columns.values[:, 0], sign, refined=lambda r: r.score)

    def metric(self, task: int, sign: float = 1.0) -> Series:
        """The metric of one task, from the numeric user attributes of the trials.

        Previews that were raced out count with the larger error of their estimates.
        """
        columns = self._columns
        partial = np.isnan(columns.preview_metrics[:, task])
        preview, error = (
            np.where(partial, estimates[:, task], full[:, task])
            for estimates, full in (
                (columns.partial_metrics, columns.preview_metrics),
                (columns.partial_se, columns.preview_se),
            )
        )
        truth = columns.truth_metrics[:, task]
        return self._series(preview, truth, sign, error**2, lambda r: r.metrics[task])

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
        return self._series(columns.preview_metrics[:, index], values, sign, noise)


_MAX_SPREAD = 2000


def spread_subset(weights: Array, values: Array, n: int) -> Indices:
    """Indices of the `n` most informative points, ascending; deterministic.

    A third are the best, a third the most recent, the rest the farthest from all chosen before (of
    thousands of points those of every second, fourth, ... number).
    """
    if len(values) <= n:
        return np.arange(len(values))
    best = np.argsort(-values, kind="stable")[: n // 3]
    chosen = np.union1d(best, np.arange(len(values) - n // 3, len(values)))
    stride = 1
    while len(values) > stride * max(_MAX_SPREAD, 4 * n):
        stride *= 2
    others = np.setdiff1d(np.arange(0, len(values), stride), chosen)
    points = weights[others]
    square = np.einsum("nt,nt->n", points, points)
    distance = np.full(len(others), np.inf)
    for centre in weights[chosen]:
        np.minimum(distance, square + centre @ centre - 2 * points @ centre, out=distance)
    picked = []
    for _ in range(n - len(chosen)):
        i = int(np.argmax(distance))
        picked.append(i)
        np.minimum(distance, square + square[i] - 2 * points @ points[i], out=distance)
        distance[i] = -np.inf
    return np.sort(np.concatenate([chosen, others[picked]]))
