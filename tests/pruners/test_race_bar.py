"""The bar that previews are raced against, and what a raced-out trial is to the ledger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from optuna_merge.pruners import (
    RACED_OUT,
    Budget,
    Promote,
    PromotionPruner,
    Prune,
    best_scores_first,
    decide,
    race_bar,
    read_ledger,
)

BUDGET = Budget(fraction=0.25, warmup=4)


def trial(value: float | None, state: str = "PRUNED", **attrs: Any) -> FrozenTrial:
    return create_trial(
        state=TrialState[state],
        value=1.0 if state == "COMPLETE" else None,
        params={"w_a": 0.5},
        distributions={"w_a": FloatDistribution(0, 1)},
        intermediate_values={} if value is None else {0: value},
        user_attrs=attrs,
    )


def history(*trials: FrozenTrial) -> list[FrozenTrial]:
    for number, made in enumerate(trials):
        made.number = number
    return list(trials)


def raced_out(state: str = "PRUNED") -> FrozenTrial:
    return trial(None, state, **{RACED_OUT: 0, "partial_preview_a": 9.0})


def previews(*values: float) -> list[FrozenTrial]:
    return [trial(value, preview_decision="prune") for value in values]


def test_the_bar_is_the_preview_at_the_threshold_s_rank_and_some_more() -> None:
    trials = history(*previews(*(i / 100 for i in range(39))))
    # Of 40 previews ten are promoted: ranks 10, and 10 + sqrt(10) rounded up.
    for slack, rank in ((0.0, 10), (1.0, 14)):
        bar = race_bar(trials, BUDGET, slack=slack, maximize=True)
        assert bar is not None
        assert bar.trial.number == 39 - rank
        assert bar.score == bar.trial.intermediate_values[0]
        bar = race_bar(trials, BUDGET, slack=slack, maximize=False)
        assert bar is not None
        assert bar.trial.number == rank - 1


def test_no_bar_before_the_warmup_or_without_a_budget() -> None:
    trials = history(*previews(0.1, 0.2, 0.3, 0.4))
    assert race_bar(trials, BUDGET, slack=0.0, maximize=True) is not None
    assert race_bar(trials[:3], BUDGET, slack=0.0, maximize=True) is None
    assert race_bar(trials, Budget(0.0, None, 4), slack=0.0, maximize=True) is None
    assert race_bar(trials, Budget(0.1, None, 4), slack=0.0, maximize=True) is None
    assert race_bar(trials, BUDGET, slack=9.0, maximize=True) is None  # not so many previews


def test_baselines_copies_failed_and_raced_out_trials_are_never_at_the_bar() -> None:
    trials = history(
        trial(0.9, "COMPLETE", baseline="uniform"),
        *previews(0.1, 0.2, 0.3),
        trial(0.3, "COMPLETE", promoted_from=3, preview_decision="promote"),
        trial(0.8, "FAIL"),
        raced_out(),
        trial(float("nan")),
    )
    bar = race_bar(trials, BUDGET, slack=0.0, maximize=True)
    assert bar is not None
    # Five previews, the raced-out one and that of NaN included; with the next one six: rank 2.
    assert bar.trial.number == 2
    assert [reference.number for reference in bar.references] == [0, 1, 3, 2]


def test_references_are_the_first_full_previews_and_the_bar() -> None:
    trials = history(*previews(*[0.1] * 30, 0.9), raced_out())
    bar = race_bar(trials, Budget(1 / 33, None, 4), slack=0.0, maximize=True)
    assert bar is not None
    assert [reference.number for reference in bar.references] == [*range(16), 30]


def test_a_raced_out_trial_is_a_preview_but_no_candidate() -> None:
    trials = history(*previews(0.1, 0.2), raced_out(), raced_out("RUNNING"), raced_out("FAIL"))
    ledger = read_ledger(trials)
    assert ledger.previews == {0, 1, 2, 3}
    assert {candidate.number for candidate in ledger.candidates} == {0, 1}
    decisions = decide(trials, None, budget=BUDGET, order=best_scores_first(True))
    assert decisions == (Promote(1),)
    assert Prune(3) not in decisions


@pytest.mark.parametrize("times", [1, 2])
def test_a_slot_that_a_raced_out_preview_opens_is_filled(times: int) -> None:
    study = optuna.create_study(
        direction="maximize", pruner=PromotionPruner(fraction=0.25, warmup=4, rank="preview")
    )
    for value in (0.1, 0.4, 0.3):
        made = study.ask({"w_a": FloatDistribution(0, 1)})
        made.report(value, 0)
        assert made.should_prune()
        study.tell(made, state=TrialState.PRUNED)
    last = study.ask({"w_a": FloatDistribution(0, 1)})
    last.set_user_attr(RACED_OUT, 1)
    for _ in range(times):  # a retry asks again
        assert last.should_prune()
    study.tell(last, state=TrialState.PRUNED)
    copies = [t for t in study.trials if "promoted_from" in t.user_attrs]
    assert [t.user_attrs["promoted_from"] for t in copies] == [1]
    assert last.user_attrs["preview_decision"] == "prune"


@pytest.mark.parametrize(
    ("truth", "count", "raced"),
    [
        (lambda preview: preview, 8, True),
        (lambda preview: -preview, 8, False),  # misleading
        (lambda preview: (7 * preview) % 0.31, 8, False),  # useless
        (lambda preview: -preview, 7, True),  # too few to tell
    ],
)
def test_no_bar_while_previews_do_not_prove_true(
    truth: Callable[[float], float], count: int, raced: bool
) -> None:
    finished = []
    for i in range(count):
        value = 0.1 * (i + 1)
        made = create_trial(
            state=TrialState.COMPLETE,
            value=truth(value),
            params={"w_a": 0.1 + 0.05 * i, "w_b": 0.9 - 0.05 * i},
            distributions={name: FloatDistribution(0, 1) for name in ("w_a", "w_b")},
            intermediate_values={0: value},
            user_attrs={"preview_decision": "promote"},
        )
        finished.append(made)
    trials = history(*finished, *previews(*(i / 100 for i in range(39))))
    found = race_bar(trials, BUDGET, maximize=True, tasks=("a", "b"))
    assert (found is not None) == raced
    assert race_bar(trials, BUDGET, maximize=True) is not None  # the truths are not looked at
