"""One trial, reduced to what samplers, pruners and calibration need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from optuna_merge.trials._attributes import (
    BASELINE,
    PREVIEW,
    PREVIEW_AT_ANCHOR,
    PREVIEW_SE,
    PREVIEW_SECONDS,
    PREVIEW_TAKEN_FROM,
    PROMOTED_FROM,
    PROMOTION,
    REPEAT,
    TRUTH,
    TRUTH_REUSED,
    TRUTH_SECONDS,
    WITHDRAWN,
    of_task,
)
from optuna_merge.trials._lineage import lineage, retry_history
from optuna_merge.trials._optuna import can_be_copied, known_params
from optuna_merge.trials._weights import canonical_weights, param_name


@dataclass(frozen=True)
class Record:
    """One trial. NaN stands for "not known".

    Attributes:
        number: The trial's.
        state: The trial's.
        lineage: The number of its weighting's first trial.
        retries: Numbers of the failed tries before it.
        weights: Canonical task weights; () where there are none, or none that are valid.
        params: The weights as suggested.
        preview: The score at step 0.
        values: The objective values of a COMPLETE trial.
        preview_metrics, preview_se, truth_metrics: By task, in order.
        is_at_anchor: Whether the preview was made from the truth, and so proves nothing.
        is_baseline: Whether it is always finetuned.
        is_copy: Whether it is a promoted copy, or a repeat that was queued as one.
        repeat: Which repeat of a finetune it is; 0 for the first.
        promotion: Of a copy, what stands under `PROMOTION`.
        reported: Whether it has step 0.
        noted: Whether it has the preview of every task's metric.
        last_step: The last step that it has reported; -1 for none.
        preview_seconds: What its preview took.
        preview_taken: Whether its preview was taken from another trial.
        truth_seconds: What its finetune took.
        reused: Whether its finetune was found finished.
        can_be_copied: Whether a trial with its parameters can be queued.
    """

    number: int
    state: TrialState
    lineage: int
    retries: tuple[int, ...]
    weights: tuple[float, ...]
    params: tuple[float, ...]
    preview: float
    values: tuple[float, ...]
    preview_metrics: tuple[float, ...]
    preview_se: tuple[float, ...]
    truth_metrics: tuple[float, ...]
    is_at_anchor: bool
    is_baseline: bool
    is_copy: bool
    repeat: int
    promotion: str | None
    reported: bool
    noted: bool
    last_step: int
    preview_seconds: float
    preview_taken: bool
    truth_seconds: float
    reused: bool
    can_be_copied: bool

    @property
    def is_finetuning(self) -> bool:
        """Whether its truth is under way or queued."""
        if self.state not in (TrialState.RUNNING, TrialState.WAITING):
            return False
        return self.is_baseline or (self.is_copy and self.promotion != WITHDRAWN)


def read_trial(trial: FrozenTrial, tasks: Sequence[str]) -> Record:
    """The record of a trial."""
    known, attrs = known_params(trial), trial.user_attrs
    params = tuple(_number(known.get(param_name(task))) for task in tasks)
    try:
        weights = canonical_weights(params, tasks) if tasks else ()
    except ValueError:  # a parameter is missing, or negative in another user's search space
        weights = ()
    done = trial.state == TrialState.COMPLETE
    keys = [of_task(PREVIEW, task) for task in tasks]
    return Record(
        number=trial.number,
        state=trial.state,
        lineage=lineage(trial),
        retries=tuple(retry_history(trial)),
        weights=weights,
        params=params,
        preview=_number(trial.intermediate_values.get(0)),
        values=tuple(_number(value) for value in trial.values or ()) if done else (),
        preview_metrics=tuple(_number(attrs.get(key)) for key in keys),
        preview_se=tuple(_number(attrs.get(of_task(PREVIEW_SE, task))) for task in tasks),
        truth_metrics=tuple(
            _number(attrs.get(of_task(TRUTH, task))) if done else math.nan for task in tasks
        ),
        is_at_anchor=bool(attrs.get(PREVIEW_AT_ANCHOR, max(weights, default=0.0) == 1.0)),
        is_baseline=BASELINE in attrs,
        is_copy=PROMOTED_FROM in attrs or (REPEAT in attrs and PROMOTION in attrs),
        repeat=int(attrs.get(REPEAT, 0)),
        promotion=attrs.get(PROMOTION),
        reported=0 in trial.intermediate_values,
        noted=bool(keys) and all(key in attrs for key in keys),
        last_step=max(trial.intermediate_values, default=-1),
        preview_seconds=_number(attrs.get(PREVIEW_SECONDS)),
        preview_taken=PREVIEW_TAKEN_FROM in attrs,
        truth_seconds=_number(attrs.get(TRUTH_SECONDS)),
        reused=bool(attrs.get(TRUTH_REUSED, False)),
        can_be_copied=can_be_copied(trial),
    )


def _number(value: object) -> float:
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    return math.nan
