"""What a study knows about previews and truths, as arrays. No torch here."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from optuna.trial import FrozenTrial, TrialState

from optuna_merge._optuna import PROMOTED_AT, PROMOTED_FROM
from optuna_merge.weights import canonical_weights, param_name

Array = npt.NDArray[np.float64]


REFINED = "refined_{step}_{task}"
"""User attribute of a task's metric in the preview that was refined by `step` training steps."""


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


@dataclass
class TrialReader:
    """Turns trials into a `History`, remembering those that can't change any more.

    The memory only saves time: a fresh reader returns the same history.
    """

    tasks: tuple[str, ...]
    _seen: dict[str, dict[int, tuple[datetime.datetime | None, Record | None]]] = field(
        default_factory=dict
    )

    def read(self, study_name: str, trials: Sequence[FrozenTrial], skip: int = -1) -> History:
        """History of the trials given, except the one numbered `skip`."""
        seen = self._seen.setdefault(study_name, {})
        records = []
        for trial in trials:
            if trial.number == skip:
                continue
            hit = seen.get(trial.number)
            if hit is not None and hit[0] == trial.datetime_complete:
                record = hit[1]
            else:
                record = read_trial(trial, self.tasks)
                if trial.state.is_finished():
                    seen[trial.number] = (trial.datetime_complete, record)
            if record is not None:
                records.append(record)
        return History(self.tasks, records)


_PREVIEWED = (TrialState.PRUNED, TrialState.COMPLETE, TrialState.RUNNING)
_MIN_LEVEL = 2  # refined previews of which a model can be made


@dataclass(frozen=True)
class History:
    """The records of a study's trials, in order of their numbers."""

    tasks: tuple[str, ...]
    records: list[Record]

    def _series(
        self,
        preview: Callable[[Record], float],
        truth: Callable[[Record], float],
        sign: float,
        noise: Callable[[Record], float] | None = None,
        refined: Callable[[Refined], float] = lambda r: math.nan,
    ) -> Series:
        valid, weights = self._placed
        low = [
            (i, p)
            for i, r in enumerate(valid)
            if r.state in _PREVIEWED and not r.is_copy and not math.isnan(p := preview(r))
        ]
        high = [
            (i, v)
            for i, r in enumerate(valid)
            if r.state == TrialState.COMPLETE and not math.isnan(v := truth(r))
        ]
        return Series(
            preview_weights=weights[[i for i, _ in low]],
            previews=np.array([p for _, p in low], dtype=float),
            truth_weights=weights[[i for i, _ in high]],
            truths=np.array([v for _, v in high], dtype=float),
            preview_noise=None if noise is None else np.array([noise(valid[i]) for i, _ in low]),
            pending=self.pending(),
            sign=sign,
            refined=tuple(self._levels(valid, weights, refined)),
        )

    def _levels(
        self, records: Sequence[Record], weights: Array, value: Callable[[Refined], float]
    ) -> Iterator[Level]:
        for step in sorted({step for r in records for step in r.refined}):
            found = [
                (i, v)
                for i, r in enumerate(records)
                if r.state in _PREVIEWED
                and step in r.refined
                and not math.isnan(v := value(r.refined[step]))
            ]
            if len(found) >= _MIN_LEVEL:
                values = np.array([v for _, v in found], dtype=float)
                yield Level(weights[[i for i, _ in found]], values)

    @cached_property
    def _placed(self) -> tuple[list[Record], Array]:
        """The records with task weights, and these as an array: once, in a study of thousands."""
        valid = [r for r in self.records if r.weights]
        weights = np.array([r.weights for r in valid], dtype=float)
        return valid, weights.reshape(-1, len(self.tasks))

    def pending(self) -> Array:
        """Weights of the trials that run or wait, `k x T`."""
        live = (TrialState.RUNNING, TrialState.WAITING)
        valid, weights = self._placed
        return weights[[i for i, r in enumerate(valid) if r.state in live]]

    def visited(self) -> Array:
        """Weights of all trials, failed and waiting ones included, `n x T`."""
        return self._placed[1]

    def score(self, sign: float) -> Series:
        """The single objective: step 0 is the preview, the value of COMPLETE is the truth."""
        return self._series(
            lambda r: r.preview,
            lambda r: r.values[0] if r.values else math.nan,
            sign,
            refined=lambda r: r.score,
        )

    def metric(self, task: int, sign: float = 1.0) -> Series:
        """The metric of one task, from the numeric user attributes of the trials.

        Previews that were raced out count with the larger error of their estimates.
        """

        def is_partial(record: Record) -> bool:
            return math.isnan(record.preview_metrics[task])

        return self._series(
            lambda r: r.partial_metrics[task] if is_partial(r) else r.preview_metrics[task],
            lambda r: r.truth_metrics[task],
            sign,
            lambda r: (r.partial_se[task] if is_partial(r) else r.preview_se[task]) ** 2,
            lambda r: r.metrics[task],
        )

    def objective(self, index: int, n_objectives: int, sign: float) -> Series:
        """One of several objectives.

        With as many objectives as tasks, objective i is taken to be task i's, and the attributes
        `preview_<task>` are its previews; otherwise there are no previews.
        """
        per_task = n_objectives == len(self.tasks)
        return self._series(
            lambda r: r.preview_metrics[index] if per_task else math.nan,
            lambda r: r.values[index] if len(r.values) == n_objectives else math.nan,
            sign,
            (lambda r: r.preview_se[index] ** 2) if per_task else None,
        )


def spread_subset(weights: Array, values: Array, n: int) -> npt.NDArray[np.intp]:
    """Indices of the `n` most informative points, ascending; deterministic.

    A third are the best, a third the most recent, the rest the farthest from all chosen before.
    """
    if len(values) <= n:
        return np.arange(len(values))
    best = np.argsort(-values, kind="stable")[: n // 3]
    chosen = np.union1d(best, np.arange(len(values) - n // 3, len(values)))
    square = np.einsum("nt,nt->n", weights, weights)
    distance = np.full(len(values), np.inf)
    for i in chosen:
        np.minimum(distance, square + square[i] - 2 * weights @ weights[i], out=distance)
    distance[chosen] = -np.inf
    picked = list(chosen)
    while len(picked) < n:
        i = int(np.argmax(distance))
        picked.append(i)
        distance[i] = -np.inf
        np.minimum(distance, square + square[i] - 2 * weights @ weights[i], out=distance)
    return np.sort(np.array(picked))
