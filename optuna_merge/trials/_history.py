"""What a study knows about previews and truths, as arrays. No torch here."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
from optuna.trial import FrozenTrial, TrialState

from optuna_merge.trials._attributes import WITHDRAWN
from optuna_merge.trials._record import Record, read_trial

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

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


@dataclass
class TrialReader:
    """Turns trials into a `History`, remembering those that can't change any more.

    The memory only saves time: a fresh reader returns the same history.
    """

    tasks: tuple[str, ...]
    _known: dict[tuple[str, int], tuple[datetime.datetime, Record]] = field(default_factory=dict)

    def read(self, study_name: str, trials: Sequence[FrozenTrial], skip: int = -1) -> History:
        """History of the trials given, ordered by number, without the one numbered `skip`."""
        records = [self._read(study_name, trial) for trial in trials if trial.number != skip]
        return History(self.tasks, sorted(records, key=lambda r: r.number))

    def _read(self, study_name: str, trial: FrozenTrial) -> Record:
        key, ended = (study_name, trial.number), trial.datetime_complete
        known = self._known.get(key)
        if known is not None and known[0] == ended:
            return known[1]
        record = read_trial(trial, self.tasks)
        if ended is not None:  # before it was read: others write
            self._known[key] = (ended, record)
        return record


@dataclass(frozen=True)
class History:
    """The records of a study's trials, in order of their numbers."""

    tasks: tuple[str, ...]
    records: list[Record]

    @cached_property
    def _placed(self) -> list[Record]:
        """The records with task weights; all arrays below have a row for each."""
        return [record for record in self.records if record.weights]

    def _by_task(self, field: str) -> Array:
        rows = [getattr(record, field) for record in self._placed]
        return np.array(rows, dtype=float).reshape(len(rows), len(self.tasks))

    @cached_property
    def _weights(self) -> Array:
        return self._by_task("weights")

    @cached_property
    def _preview_metrics(self) -> Array:
        return self._by_task("preview_metrics")

    @cached_property
    def _preview_se(self) -> Array:
        return self._by_task("preview_se")

    @cached_property
    def _truth_metrics(self) -> Array:
        return self._by_task("truth_metrics")

    @cached_property
    def _score_previews(self) -> Array:
        return np.array([record.preview for record in self._placed], dtype=float)

    @cached_property
    def _has_preview(self) -> Mask:
        """Whether its preview counts: not of a failed trial, of a copy, or taken from another."""
        return np.array(
            [
                r.state in _PREVIEWED and not (r.is_copy or r.repeat or r.preview_taken)
                for r in self._placed
            ],
            dtype=bool,
        )

    def _values(self, index: int) -> Array:
        """One of the objective values; those of trials that are not COMPLETE are NaN."""
        values = (record.values for record in self._placed)
        return np.array([of[index] if index < len(of) else math.nan for of in values], dtype=float)

    def _series(
        self,
        preview: Array,
        truth: Array,
        sign: float,
        noise: Array | None = None,
        own: int | None = None,
    ) -> Series:
        low, high = self._has_preview & ~np.isnan(preview), ~np.isnan(truth)
        return Series(
            preview_weights=self._weights[low],
            previews=preview[low],
            truth_weights=self._weights[high],
            truths=truth[high],
            preview_noise=None if noise is None else noise[low],
            pending=self.pending(),
            sign=sign,
            own=own,
            anchored=self._anchored(self._weights[high]),
        )

    def _anchored(self, weights: Array) -> Mask:
        """Whether a preview at each of these weights was made from the truth there.

        Promoted copies and second seeds have no preview of their own.
        """
        found = np.zeros(len(weights), dtype=bool)
        for anchor in self._anchors:
            found |= (weights == anchor).all(axis=1)
        return found

    @cached_property
    def _anchors(self) -> set[tuple[float, ...]]:
        return {r.weights for r in self._placed if r.is_at_anchor and r.noted}

    def pending(self) -> Array:
        """Weights of the trials that run or wait, `k x T`."""
        return self._pending

    @cached_property
    def _pending(self) -> Array:
        live = [r.weights for r in self._placed if not r.state.is_finished()]
        return np.array(live, dtype=float).reshape(-1, len(self.tasks))

    def visited(self) -> Array:
        """Weights of all trials, failed and waiting ones included, `n x T`."""
        return self._weights

    def previewed(self, *, noisy: bool = False) -> Array:
        """Weights of all previews, those of running trials included, `n x T`.

        Args:
            noisy: Only those that have an error, as their trials say.
        """
        known = ~np.isnan(self._score_previews) | ~np.isnan(self._preview_metrics).all(axis=1)
        if noisy:
            known &= (self._preview_se > 0).any(axis=1)
        return self._weights[self._has_preview & known]

    def unpromoted(self) -> Array:
        """Weights of the ended previews of which no finetune was ever queued, `n x T`."""
        promoted = {r.lineage for r in self.records if r.is_copy and r.promotion != WITHDRAWN}
        finetuned = {r.weights for r in self.records if r.is_finetuning or r.values}
        found = [
            r.weights
            for r in self._placed
            if r.state == TrialState.PRUNED
            and not r.is_copy
            and r.lineage not in promoted
            and r.weights not in finetuned
            and (r.reported or r.noted)
        ]
        return np.array(found, dtype=float).reshape(-1, len(self.tasks))

    def score(self, sign: float) -> Series:
        """The single objective: step 0 is the preview, the value of COMPLETE is the truth."""
        return self._series(self._score_previews, self._values(0), sign)

    def metric(self, task: int, sign: float = 1.0) -> Series:
        """The metric of one task, from the numeric user attributes of the trials."""
        noise = self._preview_se[:, task] ** 2
        truths = self._truth_metrics[:, task]
        return self._series(self._preview_metrics[:, task], truths, sign, noise, own=task)

    def objective(self, index: int, n_objectives: int, sign: float) -> Series:
        """One of several objectives.

        With as many objectives as tasks, objective i is taken to be task i's, and the attributes
        `preview_<task>` are its previews; otherwise there are no previews.
        """
        if n_objectives != len(self.tasks):
            nothing = np.full(len(self._placed), math.nan)
            return self._series(nothing, self._values(index), sign)
        noise = self._preview_se[:, index] ** 2
        previews = self._preview_metrics[:, index]
        return self._series(previews, self._values(index), sign, noise, own=index)
