from __future__ import annotations

import math

from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from optuna.trial import TrialState


PROMOTED_FROM = "promoted_from"
"""User attribute of a copy: the number of the trial whose parameters it has."""


class PromotionPruner(BasePruner):
    """Prune every trial after a cheap preview, and run copies of the best ones in full.

    A trial reports its preview at step 0, asks ``trial.should_prune()``, and ends there. Whenever
    ``fraction`` times the number of previews allows one more full run, the best preview of the
    whole study that was not promoted yet gets it: a copy of its trial, with its parameters, is
    enqueued, and is not pruned. So no good preview is lost for having come too early.

    A copy has the user attribute ``promoted_from``. A trial with any user attribute named in
    ``never`` is not pruned either and is no preview: a baseline, for instance.

    The decision is a function of the study's trials. Where workers that decide at the same moment
    enqueue two copies of one trial, the later copy is pruned when it asks first.

    Args:
        fraction: Full runs per preview, in (0, 1].
        n_warmup_previews: Previews before the first promotion.
        max_promotions: Cap on the full runs; None for no cap.
        pruner: What judges copies at later steps; None never prunes them.
        never: User attributes of trials that are left alone.
    """

    def __init__(
        self,
        fraction: float = 0.25,
        *,
        n_warmup_previews: int = 8,
        max_promotions: int | None = None,
        pruner: BasePruner | None = None,
        never: tuple[str, ...] = ("baseline",),
    ) -> None:
        if not 0.0 < fraction <= 1.0:
            raise ValueError(f"fraction must be in (0, 1], got {fraction}.")
        if n_warmup_previews < 1:
            raise ValueError(f"n_warmup_previews must be at least 1, got {n_warmup_previews}.")
        if max_promotions is not None and max_promotions < 0:
            raise ValueError(f"max_promotions must be 0 or more, got {max_promotions}.")
        self._fraction = fraction
        self._n_warmup = n_warmup_previews
        self._cap = math.inf if max_promotions is None else max_promotions
        self._pruner = pruner
        self._never = tuple(never)

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        if any(name in trial.user_attrs for name in self._never):
            return False
        trials = study.get_trials(deepcopy=False)
        source = trial.user_attrs.get(PROMOTED_FROM)
        if source is not None:
            if any(t.number < trial.number for t in _copies(trials, source)):
                return True
            return self._pruner is not None and self._pruner.prune(study, trial)
        if 0 not in trial.intermediate_values:
            return False  # no preview yet
        self._promote(study, trials)
        return True

    def _promote(self, study: Study, trials: list[FrozenTrial]) -> None:
        sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
        previews = [
            t
            for t in trials
            if t.state != TrialState.FAIL
            and 0 in t.intermediate_values
            and PROMOTED_FROM not in t.user_attrs
            and not any(name in t.user_attrs for name in self._never)
        ]
        if len(previews) < self._n_warmup:
            return
        promoted = {t.user_attrs[PROMOTED_FROM] for t in trials if PROMOTED_FROM in t.user_attrs}
        free = min(math.floor(self._fraction * len(previews)), self._cap) - len(promoted)
        candidates = [
            t
            for t in previews
            if t.number not in promoted and math.isfinite(t.intermediate_values[0])
        ]
        candidates.sort(key=lambda t: (-sign * t.intermediate_values[0], t.number))
        for best in candidates[: max(int(free), 0)]:
            study.enqueue_trial(best.params, user_attrs={PROMOTED_FROM: best.number})


def _copies(trials: list[FrozenTrial], source: int) -> list[FrozenTrial]:
    return [
        t
        for t in trials
        if t.user_attrs.get(PROMOTED_FROM) == source and t.state != TrialState.FAIL
    ]
