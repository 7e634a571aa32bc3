"""The last finetunes of a budget: second seeds of the best weights, so that luck is seen as luck.

The best of many truths owes part of it to its seed. Spent on the best two once more, the last two
finetunes cost little of what the search finds and halve by how much its answer is too good.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import optuna
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_merge.pruners._budget import Budget
from optuna_merge.pruners._ledger import Ledger
from optuna_merge.trials import (
    PREVIEW_SECONDS,
    PREVIEW_TAKEN_FROM,
    PROMOTION,
    QUEUED,
    REPEAT,
    WITHDRAWN,
    History,
    Record,
    names_of_previews,
)

_logger = logging.getLogger(__name__)

_SHARE = 3  # at most every third finetune of the budget


def second_seeds_left(ledger: Ledger, budget: Budget, wanted: int) -> int:
    """How many of the finetunes that are left under the caps are kept for second seeds.

    Of those `wanted`, at most a third of all promotions.
    """
    left = budget.left(ledger)
    if left is None:
        return 0
    planned = min(wanted, (len(ledger.claims) + left) // _SHARE)
    return max(0, min(left, planned - len(ledger.repeats)))


def queue_second_seeds(
    study: Study,
    trials: Sequence[FrozenTrial],
    history: History,
    ledger: Ledger,
    budget: Budget,
    kept: int,
) -> bool:
    """Queue `kept` second seeds at most; whether there are some, or will be after finetunes."""
    by_number = {trial.number: trial for trial in trials}
    again = worth_repeating(
        history.records,
        [
            all(value <= 0 for value in by_number[record.number].constraints.values())
            for record in history.records
        ],
        maximize=study.direction == StudyDirection.MAXIMIZE,
        n=min(kept, budget.free(ledger, ledger.claims)),
    )
    for record in again:
        study.add_trial(_second_seed(by_number[record.number], history.tasks))
        _logger.info("The weights of trial %d get a second seed.", record.number)
    return bool(again or ledger.under_way or ledger.baselines_under_way)


def worth_repeating(
    records: Sequence[Record], feasible: Sequence[bool], *, maximize: bool, n: int
) -> list[Record]:
    """The finetunes whose weights get a second seed: of the best truths without one, n at most.

    None while promoted weights or baselines are being finetuned, or wait for it: they may be
    better. The records are those of all trials by number; `feasible` is told of each.
    """
    if any(r.is_finetuning and not (r.is_copy and r.repeat) for r in records):
        return []
    sign = -1.0 if maximize else 1.0
    # A repeat that failed is not tried by a new one.
    again = {r.weights for r in records if r.repeat and r.promotion != WITHDRAWN}
    known: dict[tuple[float, ...], tuple[float, int, Record]] = {}
    for r, able in zip(records, feasible):
        whole = r.state == TrialState.COMPLETE and len(r.values) == 1 and r.can_be_copied
        if whole and able and r.weights and r.weights not in again and max(r.weights) < 1:
            known.setdefault(r.weights, (sign * r.values[0], r.number, r))
    return [r for _, _, r in sorted(known.values(), key=lambda of: of[:2])[:n]]


def _second_seed(trial: FrozenTrial, tasks: Sequence[str]) -> FrozenTrial:
    """A queued finetune at the weights of a finished one, with the next seed and its preview."""
    known = [name for name in names_of_previews(tasks) if name in trial.user_attrs]
    attrs = {name: trial.user_attrs[name] for name in known}
    seen = trial.intermediate_values.get(0)
    return optuna.trial.create_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        intermediate_values={} if seen is None else {0: seen},
        user_attrs=attrs
        | {PREVIEW_TAKEN_FROM: trial.number, PREVIEW_SECONDS: 0.0}
        | {REPEAT: int(trial.user_attrs.get(REPEAT, 0)) + 1, PROMOTION: QUEUED},
    )
