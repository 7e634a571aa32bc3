"""The decision as tables of (history, expected)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from optuna_merge.pruners import (
    Budget,
    Candidate,
    best_fronts_first,
    best_scores_first,
    decide,
    read_ledger,
)
from optuna_merge.pruners._decision import duplicate_promotion, is_over_budget
from optuna_merge.trials import read_trial

NAN = math.nan
OPEN = Budget(fraction=0.25, warmup=0)


def trial(
    value: float | None,
    state: str = "PRUNED",
    attrs: dict[str, Any] | None = None,
    retries: list[int] | None = None,
    later: dict[int, float] | None = None,
) -> FrozenTrial:
    steps = {} if value is None else {0: value}
    return create_trial(
        state=TrialState[state],
        value=1.0 if state == "COMPLETE" else None,
        params={"w_a": 0.5},
        distributions={"w_a": FloatDistribution(0, 1)},
        intermediate_values={**steps, **(later or {})},
        user_attrs=dict(attrs or {}),
        system_attrs={"failed_trial": retries[0], "retry_history": retries} if retries else {},
    )


def history(*trials: FrozenTrial) -> list[FrozenTrial]:
    for number, made in enumerate(trials):
        made.number = number
    return list(trials)


def copy_of(number: int, state: str = "WAITING", promotion: str = "queued", **more: Any) -> Any:
    attrs = {"promoted_from": number, "promotion": promotion}
    return trial(0.5, state, attrs, **more)


def previews(*values: float) -> list[FrozenTrial]:
    return [trial(value) for value in values]


def running(value: float) -> FrozenTrial:
    return trial(value, "RUNNING")


DECISIONS: list[tuple[str, list[FrozenTrial], list[int]]] = [
    # name, trials (the last one asks; fraction 1/4, maximize), what is promoted
    ("the first preview opens no slot", [running(1.0)], []),
    ("the best one is the current one", [*previews(0.1, 0.2, 0.3), running(0.9)], [3]),
    ("the best one was pruned long ago", [*previews(0.1, 0.9, 0.3), running(0.2)], [1]),
    ("ties: the lower number", [*previews(0.1, 0.9, 0.9), running(0.9)], [1]),
    (
        "two free slots",
        [*previews(0.1, 0.7, 0.3, 0.4, 0.5, 0.6, 0.2), running(0.9)],
        [7, 1],
    ),
    (
        "two free slots, neither for the current one, the best first",
        [*previews(0.1, 0.7, 0.3, 0.9, 0.5, 0.6, 0.2), running(0.05)],
        [3, 1],
    ),
    (
        "another one that runs may be promoted",
        [*previews(0.1, 0.2), running(0.95), running(0.9)],
        [2],
    ),
    (
        "a waiting copy takes the slot, and is no preview",
        [*previews(0.1, 0.8, 0.3), copy_of(1), running(0.9)],
        [],
    ),
    (
        "so does one that runs",
        [*previews(0.1, 0.8, 0.3), copy_of(1, "RUNNING", "begun"), running(0.9)],
        [],
    ),
    (
        "one that is done",
        [*previews(0.1, 0.8, 0.3), copy_of(1, "COMPLETE", "begun"), running(0.9)],
        [],
    ),
    (
        "one that was pruned at a rung",
        [*previews(0.1, 0.8, 0.3), copy_of(1, "PRUNED", "begun", later={10: 0.1}), running(0.9)],
        [],
    ),
    (
        "one that failed has been spent",
        [*previews(0.1, 0.8, 0.3), copy_of(1, "FAIL", "begun"), running(0.9)],
        [],
    ),
    (
        "what was promoted is not promoted again",
        [*previews(0.1, 0.8, 0.3, 0.4, 0.5, 0.6, 0.7), copy_of(1, "COMPLETE"), running(0.05)],
        [6],
    ),
    (
        "two copies of one preview take one slot",
        [
            *previews(0.1, 0.8, 0.3, 0.4, 0.5, 0.6),
            copy_of(1),
            copy_of(1),
            trial(0.2),
            running(0.9),
        ],
        [9],
    ),
    (
        "a copy that withdrew takes no slot, and its preview is a candidate",
        [*previews(0.1, 0.95, 0.3), copy_of(1, "PRUNED", "withdrawn"), running(0.9)],
        [1],
    ),
    (
        "a clone that withdrew frees the slot of the copy that failed",
        [
            *previews(0.1, 0.95, 0.3),
            copy_of(1, "FAIL"),
            copy_of(1, "PRUNED", "withdrawn", retries=[3]),
            running(0.2),
        ],
        [1],
    ),
    (
        "another copy that withdrew does not",
        [
            *previews(0.1, 0.95, 0.3),
            copy_of(1, "FAIL"),
            copy_of(1, "PRUNED", "withdrawn"),
            running(0.2),
        ],
        [],
    ),
    (
        "failed previews neither count nor are promoted",
        [*previews(0.1, 0.2), trial(0.95, "FAIL"), running(0.9)],
        [],
    ),
    (
        "a retry clone counts once",
        [*previews(0.1), trial(0.9, "FAIL"), trial(0.9, retries=[1]), running(0.2)],
        [],
    ),
    (
        "a retry clone is promoted under its own number",
        [
            *previews(0.1, 0.2),
            trial(0.9, "FAIL"),
            trial(0.9, "FAIL", retries=[2]),
            trial(0.9, retries=[2, 3]),
            trial(0.2),
        ],
        [4],
    ),
    (
        "a clone that waits for its preview's second try is no candidate",
        [*previews(0.1, 0.2, 0.3), trial(0.9, "FAIL"), trial(0.9, "WAITING", retries=[3])],
        [2],
    ),
    (
        "baselines are neither previews nor promotions",
        [
            trial(0.9, "COMPLETE", {"baseline": "uniform"}),
            trial(0.9, "PRUNED", {"baseline": "a"}),
            *previews(0.1, 0.2),
            running(0.3),
        ],
        [],
    ),
    (
        "a NaN counts as a preview and is never promoted",
        [*previews(NAN, NAN, NAN), running(0.1)],
        [3],
    ),
    ("not even the last one", [*previews(0.1, 0.2, 0.3), running(NAN)], [2]),
    ("nor is an infinity", [*previews(NAN, math.inf, NAN), running(math.inf)], []),
    (
        "trials without a preview don't count",
        [*previews(0.1, 0.2), trial(None, "COMPLETE"), trial(None, "WAITING"), running(0.9)],
        [],
    ),
    (
        "finetunes made under another pruner take slots",
        [*previews(0.1, 0.2), trial(0.8, "COMPLETE"), running(0.9)],
        [],
    ),
    (
        "previews pruned by another pruner may be promoted, finetunes not",
        [trial(0.8), trial(0.9, later={5: 0.9}), *previews(*[0.1] * 5), running(0.3)],
        [0],
    ),
]


@pytest.mark.parametrize(
    ("trials", "expected"), [row[1:] for row in DECISIONS], ids=[row[0] for row in DECISIONS]
)
def test_decide(trials: list[FrozenTrial], expected: list[int]) -> None:
    history(*trials)
    before = repr(trials)
    found = decide(read_ledger(trials), OPEN, best_scores_first(True))
    assert [c.number for c in found] == expected
    assert repr(trials) == before, "it is only read"
    # The other direction is the same with the other sign.
    for mirrored in trials:
        if 0 in mirrored.intermediate_values:
            steps = mirrored.intermediate_values
            mirrored.intermediate_values = {**steps, 0: -steps[0]}
    found = decide(read_ledger(trials), OPEN, best_scores_first(False))
    assert [c.number for c in found] == expected


def test_an_order_of_one_s_own() -> None:
    """The decision needs no step 0 and no single score."""
    vectors = [(0.1, 0.1), (0.9, 0.9), (0.2, NAN), (0.5, 0.1)]
    trials = history(*[trial(None, attrs={"preview_a": a, "preview_b": b}) for a, b in vectors])

    def worst_task_first(candidates: Any) -> list[Candidate]:
        return sorted(candidates, key=lambda c: -min(c.scores))

    ledger = read_ledger(trials, ["a", "b"], several=True)
    found = decide(ledger, Budget(fraction=0.5, warmup=0), worst_task_first)
    assert [c.number for c in found] == [1, 0]


@pytest.mark.parametrize(
    ("budget", "n_previews", "cap"),
    [
        (Budget(), 7, 0),
        (Budget(), 8, 2),
        (Budget(), 11, 2),
        (Budget(), 100, 25),
        (Budget(fraction=0.29, warmup=0), 100, 29),  # 28.999999999999996 in floating point
        (Budget(fraction=1 / 3, warmup=0), 3, 1),
        (Budget(fraction=0.0), 100, 0),
        (Budget(fraction=1.0, warmup=0), 5, 5),
        (Budget(max_promotions=3), 100, 3),
        (Budget(max_promotions=0), 100, 0),
        (Budget(max_promotions=3), 8, 2),
        (Budget(warmup=0), 3, 0),
        (Budget(), 0, 0),
    ],
)
def test_cap(budget: Budget, n_previews: int, cap: int) -> None:
    assert budget.cap(n_previews) == cap


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_promotions": -1}, "max_promotions is -1, expected 0 or more, or None for no cap"),
        ({"finetunes": NAN}, "finetunes is nan, expected 0 or more, or None for no cap"),
    ],
)
def test_bad_budgets_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budget(**arguments)


@pytest.mark.parametrize(
    "budget",
    [Budget(fraction=0), Budget(max_promotions=0), Budget(finetunes=0)],
)
def test_with_a_budget_of_zero_not_even_what_is_queued_runs(budget: Budget) -> None:
    trials = history(*previews(*[0.1] * 9), copy_of(0))
    ledger = read_ledger(trials)
    assert budget.is_zero
    assert is_over_budget(ledger, read_trial(trials[-1], ()), budget)
    assert decide(ledger, budget, best_scores_first(True)) == ()


FRONTS: list[tuple[str, list[tuple[float, float]], list[float] | None, list[int]]] = [
    # name, preview vectors (maximize, minimize), reference point, order
    ("by rank", [(0.1, 0.9), (0.9, 0.1), (0.5, 0.5)], None, [1, 2, 0]),
    ("then by volume", [(0.9, 0.8), (0.6, 0.4), (0.2, 0.3)], [0.0, 1.0], [1, 0, 2]),
    ("from another point", [(0.9, 0.8), (0.6, 0.4), (0.2, 0.3)], [0.0, 9.0], [0, 1, 2]),
    ("ties: the lower number", [(0.5, 0.5), (0.5, 0.5), (0.6, 0.5)], [0.0, 1.0], [2, 0, 1]),
]


@pytest.mark.parametrize(
    ("vectors", "reference", "expected"), [row[1:] for row in FRONTS], ids=[r[0] for r in FRONTS]
)
def test_of_several_objectives_the_front_is_promoted_first(
    vectors: list[tuple[float, float]], reference: list[float] | None, expected: list[int]
) -> None:
    trials = history(
        *[trial(None, attrs={"preview_a": x, "preview_b": y}) for x, y in vectors],
        trial(None, attrs={"preview_a": 0.99, "preview_b": None}),  # it was NaN
        trial(None, attrs={"preview_a": 0.99}),  # killed half-way: no preview
    )
    ledger = read_ledger(trials, ["a", "b"], several=True)
    point = None if reference is None else np.array(reference)
    found = decide(ledger, Budget(fraction=1.0, warmup=0), best_fronts_first([True, False], point))
    assert [c.number for c in found] == expected
    assert len(ledger.previews) == len(vectors) + 1


DUPLICATES: list[tuple[str, list[FrozenTrial], int | None]] = [
    # name, trials (the last one asks), the copy that stands in its way
    ("the only copy", [*previews(0.1), copy_of(0, "RUNNING")], None),
    ("copies of others", [*previews(0.1, 0.2), copy_of(1), copy_of(0, "RUNNING")], None),
    ("waiting", [*previews(0.1), copy_of(0), copy_of(0, "RUNNING")], 1),
    ("running", [*previews(0.1), copy_of(0, "RUNNING"), copy_of(0, "RUNNING")], 1),
    ("complete", [*previews(0.1), copy_of(0, "COMPLETE"), copy_of(0, "RUNNING")], 1),
    (
        "pruned at a rung",
        [*previews(0.1), copy_of(0, "PRUNED", later={5: 0.1}), copy_of(0, "RUNNING")],
        1,
    ),
    ("pruned at its preview", [*previews(0.1), copy_of(0, "PRUNED"), copy_of(0, "RUNNING")], None),
    (
        "withdrawn, not yet pruned",
        [*previews(0.1), copy_of(0, "RUNNING", "withdrawn"), copy_of(0, "RUNNING")],
        None,
    ),
    ("failed", [*previews(0.1), copy_of(0, "FAIL"), copy_of(0, "RUNNING")], None),
    (
        "the first of several",
        [*previews(0.1), copy_of(0, "FAIL"), copy_of(0), copy_of(0), copy_of(0, "RUNNING")],
        2,
    ),
]


@pytest.mark.parametrize(
    ("trials", "twin"), [row[1:] for row in DUPLICATES], ids=[row[0] for row in DUPLICATES]
)
def test_duplicate_promotion(trials: list[FrozenTrial], twin: int | None) -> None:
    records = [read_trial(t, ()) for t in history(*trials)]
    assert duplicate_promotion(records, records[-1]) == twin


def test_the_copy_of_the_lowest_number_is_no_duplicate() -> None:
    trials = history(*previews(0.1), copy_of(0, "RUNNING"), copy_of(0, "COMPLETE"))
    records = [read_trial(t, ()) for t in trials]
    assert duplicate_promotion(records, records[1]) is None


OVER_BUDGET: list[tuple[str, list[FrozenTrial], bool]] = [
    # name, trials (the last one asks; one slot), whether it has to give way
    ("the slot is free", [*previews(0.1, 0.2, 0.3, 0.4), copy_of(3)], False),
    ("an earlier copy", [*previews(0.1, 0.2, 0.3, 0.4), copy_of(2), copy_of(3)], True),
    (
        "an earlier copy that withdrew",
        [*previews(0.1, 0.2, 0.3, 0.4), copy_of(2, promotion="withdrawn"), copy_of(3)],
        False,
    ),
    (
        "an earlier copy that failed has been spent",
        [*previews(0.1, 0.2, 0.3, 0.4), copy_of(2, "FAIL"), copy_of(3)],
        True,
    ),
    (
        "an earlier copy of the same",
        [*previews(0.1, 0.2, 0.3, 0.4), copy_of(3, "FAIL"), copy_of(3)],
        False,
    ),
    (
        "the place of its first copy counts",
        [*previews(0.1, 0.2, 0.3, 0.4), copy_of(3, "FAIL"), copy_of(2), copy_of(3)],
        False,
    ),
    (
        "but not before one that goes on",
        [
            *previews(0.1, 0.2, 0.3, 0.4),
            copy_of(3, "FAIL"),
            copy_of(2, "RUNNING", "begun"),
            copy_of(3),
        ],
        True,
    ),
    (
        "a finetune under another pruner",
        [*previews(0.1, 0.2, 0.3), trial(0.4, "COMPLETE"), copy_of(2)],
        True,
    ),
    ("alone, though the slot has gone", [*previews(0.1, 0.2, 0.3), copy_of(2)], False),
    ("the slot has gone", [*previews(0.1, 0.2, 0.3), copy_of(1), copy_of(2)], True),
]


@pytest.mark.parametrize(
    ("trials", "expected"), [row[1:] for row in OVER_BUDGET], ids=[row[0] for row in OVER_BUDGET]
)
def test_is_over_budget(trials: list[FrozenTrial], expected: bool) -> None:
    ledger = read_ledger(history(*trials))
    assert is_over_budget(ledger, read_trial(trials[-1], ()), OPEN) is expected


def test_ledger_of_a_copy_of_a_clone_is_that_of_the_first_attempt() -> None:
    trials = history(trial(0.9, "FAIL"), trial(0.9, retries=[0]), copy_of(0, "FAIL"), copy_of(0))
    ledger = read_ledger(trials)
    assert ledger.previews == {0}
    assert ledger.claims == {0}
    assert ledger.copies == {0: 2}
    assert ledger.candidates == ()
