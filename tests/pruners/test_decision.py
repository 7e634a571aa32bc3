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
    Promote,
    Prune,
    best_fronts_first,
    best_scores_first,
    decide,
    is_duplicate_promotion,
    is_over_budget,
    preview_metrics,
    read_ledger,
)
from optuna_merge.pruners._decision import LedgerReader, claim_holds

NAN = math.nan
PROMOTED = {"preview_decision": "promote"}
PRUNED = {"preview_decision": "prune"}
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


def copy_of(number: int, state: str = "WAITING", **attrs: Any) -> FrozenTrial:
    later = {10: 0.5} if attrs.pop("later", False) else None
    retries = attrs.pop("retries", None)
    return trial(0.5, state, {**PROMOTED, "promoted_from": number, **attrs}, retries, later)


def previews(*values: float) -> list[FrozenTrial]:
    return [trial(value, attrs=PRUNED) for value in values]


def running(value: float) -> FrozenTrial:
    return trial(value, "RUNNING")


DECISIONS: list[tuple[str, list[FrozenTrial], list[Promote | Prune]]] = [
    # name, trials (the last one is the current one; fraction 1/4, maximize), decisions
    ("the first preview opens no slot", [running(1.0)], [Prune(0)]),
    ("the best one is the current one", [*previews(0.1, 0.2, 0.3), running(0.9)], [Promote(3)]),
    (
        "the best one was pruned long ago",
        [*previews(0.1, 0.9, 0.3), running(0.2)],
        [Promote(1), Prune(3)],
    ),
    ("ties: the lower number", [*previews(0.1, 0.9, 0.9), running(0.9)], [Promote(1), Prune(3)]),
    (
        "two free slots",
        [*previews(0.1, 0.7, 0.3, 0.4, 0.5, 0.6, 0.2), running(0.9)],
        [Promote(7), Promote(1)],
    ),
    (
        "two free slots, neither for the current one, the best first",
        [*previews(0.1, 0.7, 0.3, 0.9, 0.5, 0.6, 0.2), running(0.05)],
        [Promote(3), Promote(1), Prune(7)],
    ),
    (
        "a completed promotion takes the slot",
        [*previews(0.1, 0.2), trial(0.8, "COMPLETE", PROMOTED), running(0.9)],
        [Prune(3)],
    ),
    (
        "a running promotion takes the slot",
        [*previews(0.1, 0.2), trial(0.8, "RUNNING", PROMOTED), running(0.9)],
        [Prune(3)],
    ),
    (
        "a promotion pruned at a later rung takes the slot",
        [*previews(0.1, 0.2), trial(0.8, "PRUNED", PROMOTED, later={10: 0.1}), running(0.9)],
        [Prune(3)],
    ),
    (
        "a promotion that failed has been spent",
        [*previews(0.1, 0.2), trial(0.8, "FAIL", PROMOTED), running(0.9)],
        [Prune(3)],
    ),
    (
        "a claim not yet confirmed takes the slot",
        [*previews(0.1, 0.2), trial(0.8, "RUNNING", {"preview_claim": True}), running(0.9)],
        [Prune(3)],
    ),
    (
        "a claim of a failed trial does not: its clone decides anew",
        [*previews(0.1, 0.2, 0.3), trial(0.8, "FAIL", {"preview_claim": True}), running(0.9)],
        [Promote(4)],
    ),
    (
        "an undecided running trial counts as a preview, not as a promotion",
        [*previews(0.1, 0.2), running(0.95), running(0.9)],
        [Promote(3)],
    ),
    (
        "a running trial that is about to be pruned may be promoted",
        [*previews(0.1, 0.2), trial(0.95, "RUNNING", PRUNED), running(0.9)],
        [Promote(2), Prune(3)],
    ),
    (
        "a waiting copy takes the slot, and is no preview",
        [*previews(0.1, 0.8, 0.3), copy_of(1), running(0.9)],
        [Prune(4)],
    ),
    (
        "what was promoted as a copy is not promoted again",
        [*previews(0.1, 0.8, 0.3, 0.4, 0.5, 0.6, 0.7), copy_of(1, "COMPLETE"), running(0.05)],
        [Promote(6), Prune(8)],
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
        [Promote(9)],
    ),
    (
        "a copy that gave way takes no slot, and its preview is a candidate",
        [*previews(0.1, 0.95, 0.3), copy_of(1, "PRUNED", preview_decision="prune"), running(0.9)],
        [Promote(1), Prune(4)],
    ),
    (
        "a clone that gave way frees the slot of the copy that failed",
        [
            *previews(0.1, 0.95, 0.3),
            copy_of(1, "FAIL"),
            copy_of(1, "PRUNED", retries=[3], preview_decision="prune"),
            running(0.2),
        ],
        [Promote(1), Prune(5)],
    ),
    (
        "another copy that gave way does not",
        [
            *previews(0.1, 0.95, 0.3),
            copy_of(1, "FAIL"),
            copy_of(1, "PRUNED", preview_decision="prune"),
            running(0.2),
        ],
        [Prune(5)],
    ),
    (
        "a waiting clone of a trial that died claiming decides anew",
        [
            *previews(0.1, 0.2),
            trial(0.8, "FAIL", {"preview_claim": True}),
            trial(0.8, "WAITING", {"preview_claim": True}, [2]),
            running(0.9),
        ],
        [Promote(4)],
    ),
    (
        "failed previews neither count nor are promoted",
        [*previews(0.1, 0.2), trial(0.95, "FAIL"), trial(0.95, "FAIL", PRUNED), running(0.9)],
        [Prune(4)],
    ),
    (
        "a retry clone counts once",
        [*previews(0.1), trial(0.9, "FAIL"), trial(0.9, "PRUNED", PRUNED, [1]), running(0.2)],
        [Prune(3)],
    ),
    (
        "a retry clone is promoted under its own number",
        [
            *previews(0.1, 0.2),
            trial(0.9, "FAIL", PRUNED),
            trial(0.9, "FAIL", PRUNED, [2]),
            trial(0.9, "PRUNED", PRUNED, [2, 3]),
            running(0.2),
        ],
        [Promote(4), Prune(5)],
    ),
    (
        "a retry clone of a promotion takes the slot of the failed one, no second one",
        [
            *previews(0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
            trial(0.9, "FAIL", PROMOTED),
            trial(0.9, "RUNNING", PROMOTED, [6]),
            running(0.7),
        ],
        [Promote(8)],
    ),
    (
        "baselines are neither previews nor promotions",
        [
            trial(0.9, "COMPLETE", {"baseline": "uniform", "preview_decision": "baseline"}),
            trial(0.9, "PRUNED", {"baseline": "a", "preview_decision": "baseline"}),
            *previews(0.1, 0.2),
            running(0.3),
        ],
        [Prune(4)],
    ),
    (
        "a NaN counts as a preview and is never promoted",
        [*previews(NAN, NAN, NAN), running(0.1)],
        [Promote(3)],
    ),
    ("a NaN is pruned", [*previews(0.1, 0.2, 0.3), running(NAN)], [Promote(2), Prune(3)]),
    ("nor is an infinity", [*previews(NAN, math.inf, NAN), running(math.inf)], [Prune(3)]),
    (
        "trials without a preview don't count",
        [*previews(0.1, 0.2), trial(None, "COMPLETE"), trial(None, "WAITING"), running(0.9)],
        [Prune(4)],
    ),
    (
        "finetunes made under another pruner take slots",
        [*previews(0.1, 0.2), trial(0.8, "COMPLETE"), running(0.9)],
        [Prune(3)],
    ),
    (
        "previews pruned by another pruner may be promoted, finetunes not",
        [trial(0.8), trial(0.9, later={5: 0.9}), *previews(*[0.1] * 5), running(0.3)],
        [Promote(0), Prune(7)],
    ),
]


@pytest.mark.parametrize(
    ("trials", "expected"), [row[1:] for row in DECISIONS], ids=[row[0] for row in DECISIONS]
)
def test_decide(trials: list[FrozenTrial], expected: list[Promote | Prune]) -> None:
    history(*trials)
    number = trials[-1].number
    assert list(decide(trials, number, budget=OPEN, order=best_scores_first(True))) == expected
    # The other direction is the same with the other sign.
    for mirrored in trials:
        if 0 in mirrored.intermediate_values:
            steps = mirrored.intermediate_values
            mirrored.intermediate_values = {**steps, 0: -steps[0]}
    assert list(decide(trials, number, budget=OPEN, order=best_scores_first(False))) == expected


def test_the_history_is_only_read() -> None:
    trials = history(*previews(0.1, 0.9, 0.3), running(0.2))
    before = repr(trials)
    decide(trials, 3, budget=OPEN, order=best_scores_first(True))
    assert repr(trials) == before


def test_free_slots_can_be_filled_without_a_current_trial() -> None:
    trials = history(*previews(0.1, 0.9, 0.3, 0.2))
    assert decide(trials, None, budget=OPEN, order=best_scores_first(True)) == (Promote(1),)


def test_scores_of_several_objectives() -> None:
    """The decision needs no step 0 and no single score."""

    def scores(trial: FrozenTrial) -> tuple[float, float] | None:
        values = trial.user_attrs.get("scores")
        return None if values is None else tuple(values)

    vectors = [(0.1, 0.1), (0.9, 0.9), (0.2, NAN), (0.5, 0.1)]
    trials = history(*[trial(None, attrs={"scores": vector}) for vector in vectors])
    worst_task_first = decide(
        trials,
        None,
        budget=Budget(fraction=0.5, warmup=0),
        order=lambda candidates: sorted(candidates, key=lambda c: -min(c.scores)),
        scores=scores,
    )
    assert worst_task_first == (Promote(1), Promote(0))


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


def finetuned(
    state: str = "COMPLETE", seconds: float | None = None, last: int | None = None
) -> Any:
    """A trial that kept its claim."""
    attrs = PROMOTED if seconds is None else {**PROMOTED, "truth_seconds": seconds}
    return trial(0.9, state, attrs, later=None if last is None else {last: 0.5})


ALWAYS: dict[str, Any] = {"fraction": 1.0, "warmup": 0}
STEPS = Budget(max_steps=25, finetune_steps=10, **ALWAYS)
SECONDS = Budget(max_seconds=25.0, **ALWAYS)
BASELINE_RUN = trial(0.5, "COMPLETE", {"baseline": "uniform", "truth_seconds": 10.0})

FREE: list[tuple[str, Budget, list[FrozenTrial], int]] = [
    # name, budget, trials, how many more may be promoted
    ("steps: two whole finetunes", STEPS, previews(*[0.1] * 9), 2),
    ("steps: no baselines", STEPS, [BASELINE_RUN, *previews(*[0.1] * 9)], 2),
    ("steps: one done", STEPS, [finetuned(), *previews(*[0.1] * 9)], 1),
    ("steps: one under way", STEPS, [finetuned("RUNNING", last=5), *previews(*[0.1] * 9)], 1),
    ("steps: one failed has spent all", STEPS, [finetuned("FAIL"), *previews(*[0.1] * 9)], 1),
    ("steps: a copy waits", STEPS, [*previews(*[0.1] * 9), copy_of(0)], 1),
    (
        "steps: what was pruned at a rung gives back",
        STEPS,
        [finetuned("PRUNED", last=5), *previews(*[0.1] * 9)],
        2,
    ),
    (
        "steps: but 6 + 10 + 10 are too many",
        STEPS,
        [finetuned("PRUNED", last=6), *previews(*[0.1] * 9)],
        1,
    ),
    (
        "steps: a killed one counts once, by its clone",
        STEPS,
        [
            finetuned("FAIL", last=3),
            trial(0.9, "PRUNED", PROMOTED, [0], later={5: 0.1}),
            *previews(*[0.1] * 9),
        ],
        2,
    ),
    (
        "steps: a copy pruned at its last rung but one",
        STEPS,
        [*previews(*[0.1] * 9), copy_of(0, "PRUNED", later=True)],
        1,
    ),
    ("steps: exactly", Budget(max_steps=10, finetune_steps=10, **ALWAYS), previews(0.1, 0.2), 1),
    ("steps: one too few", Budget(max_steps=9, finetune_steps=10, **ALWAYS), previews(0.1), 0),
    ("steps: none", Budget(max_steps=0, finetune_steps=10, **ALWAYS), previews(0.1), 0),
    (
        "the fraction holds beside",
        Budget(max_steps=99, finetune_steps=1, warmup=0),
        previews(*[0.1] * 9),
        2,
    ),
    ("seconds: the first alone", SECONDS, previews(*[0.1] * 9), 1),
    ("seconds: while it runs no other", SECONDS, [finetuned("RUNNING"), *previews(*[0.1] * 9)], 0),
    ("seconds: as long as the longest", SECONDS, [BASELINE_RUN, *previews(*[0.1] * 9)], 2),
    ("seconds: what it took", SECONDS, [finetuned(seconds=15.0), *previews(*[0.1] * 9)], 0),
    ("seconds: and what it leaves", SECONDS, [finetuned(seconds=12.5), *previews(*[0.1] * 9)], 1),
    (
        "seconds: one under way is as long as the longest",
        SECONDS,
        [BASELINE_RUN, finetuned("RUNNING"), *previews(*[0.1] * 9)],
        1,
    ),
    (
        "seconds: one that failed likewise",
        SECONDS,
        [BASELINE_RUN, finetuned("FAIL"), *previews(*[0.1] * 9)],
        1,
    ),
    (
        "seconds: pruned at a rung",
        SECONDS,
        [BASELINE_RUN, finetuned("PRUNED", seconds=5.0, last=5), *previews(*[0.1] * 9)],
        2,
    ),
    ("seconds: none", Budget(max_seconds=0, **ALWAYS), [BASELINE_RUN, *previews(0.1)], 0),
    ("seconds: many", Budget(max_seconds=1e9, **ALWAYS), [BASELINE_RUN, *previews(0.1)], 1),
    (
        "seconds: finetunes that take none",
        SECONDS,
        [trial(0.5, "COMPLETE", {"baseline": "u", "truth_seconds": 0.0}), *previews(0.1, 0.2)],
        2,
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("budget", "trials", "free"), [row[1:] for row in FREE], ids=[row[0] for row in FREE]
)
def test_free_slots(budget: Budget, trials: list[FrozenTrial], free: int) -> None:
    ledger = read_ledger(history(*trials))
    assert budget.free(ledger, ledger.claims) == free
    decided = decide(trials, None, budget=budget, order=best_scores_first(True))
    assert len(decided) == min(free, len(ledger.candidates))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_steps": -1}, "max_steps is -1, expected 0 or more, or None for no cap"),
        ({"max_seconds": NAN}, "max_seconds is nan, expected 0 or more, or None for no cap"),
        ({"finetune_steps": 0}, "finetune_steps is 0, expected the training steps of one"),
    ],
)
def test_bad_budgets_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budget(**arguments)


def test_a_cap_on_steps_needs_the_steps_of_a_finetune() -> None:
    ledger = read_ledger(history(*previews(0.1)))
    with pytest.raises(ValueError, match=r"give PromotionPruner\(finetune_steps=\.\.\.\)"):
        Budget(max_steps=10).free(ledger, [])


@pytest.mark.parametrize(
    "budget",
    [
        Budget(fraction=0),
        Budget(max_promotions=0),
        Budget(max_steps=0, finetune_steps=10),
        Budget(max_seconds=0),
    ],
)
def test_with_a_budget_of_zero_not_even_what_is_queued_runs(budget: Budget) -> None:
    trials = history(*previews(*[0.1] * 9), copy_of(0))
    assert budget.is_zero
    assert is_over_budget(trials, trials[-1], budget)
    assert decide(trials, None, budget=budget, order=best_scores_first(True)) == ()


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
        *[trial(None, attrs={"preview_a": x, "preview_b": y, **PRUNED}) for x, y in vectors],
        trial(None, attrs={"preview_a": 0.99, "preview_b": None, **PRUNED}),  # it was NaN
        trial(None, attrs={"preview_a": 0.99, **PRUNED}),  # killed half-way: no preview
    )
    scores = preview_metrics(["a", "b"])
    point = None if reference is None else np.array(reference)
    found = decide(
        trials,
        None,
        budget=Budget(**ALWAYS),
        order=best_fronts_first([True, False], point),
        scores=scores,
    )
    assert [d.number for d in found] == expected
    assert len(read_ledger(trials, scores).previews) == len(vectors) + 1


def test_a_reader_that_remembers_reads_the_same_ledger() -> None:
    """A study that grows and whose trials end in any order, read after each change."""
    rng = np.random.default_rng(0)
    reader = LedgerReader()
    trials: list[FrozenTrial] = []
    ends = ("COMPLETE", "PRUNED", "PRUNED", "PRUNED", "FAIL")
    for _ in range(300):
        live = [t for t in trials if not t.state.is_finished()]
        if live and rng.random() < 0.6:
            old = live[int(rng.integers(len(live)))]
            attrs = {**old.user_attrs, "preview_decision": str(rng.choice(["prune", "promote"]))}
            attrs["truth_seconds"] = float(rng.random())
            retries = old.system_attrs.get("retry_history")
            later = {5: 0.5} if rng.random() < 0.3 else None
            made = trial(rng.random(), str(rng.choice(ends)), attrs, retries, later)
            trials[old.number] = made  # FrozenTrials of unfinished trials are new at each reading
            made.number = old.number
        else:
            attrs = {}
            if trials and rng.random() < 0.3:
                attrs = {**PROMOTED, "promoted_from": int(rng.integers(len(trials)))}
            failed = [t.number for t in trials if t.state == TrialState.FAIL]
            retries = [failed[-1]] if failed and rng.random() < 0.3 else None
            made = trial(rng.random(), str(rng.choice(["RUNNING", "WAITING"])), attrs, retries)
            made.number = len(trials)
            trials.append(made)
        assert reader.read("s", trials) == read_ledger(trials)
    assert len(read_ledger(trials).claims) > 10
    assert reader.read("another", trials[:9]) == read_ledger(trials[:9])
    other = history(*previews(*[0.1] * 400))  # a study of that name, made again
    assert reader.read("s", other) == read_ledger(other)
    assert reader.read("s", other[:3]) == read_ledger(other[:3])


DUPLICATES: list[tuple[str, list[FrozenTrial], int | None]] = [
    # name, trials (the last one asks), the sibling that stands in its way
    ("not a copy", [*previews(0.1, 0.2), running(0.3)], None),
    ("the only copy", [*previews(0.1), copy_of(0, "RUNNING")], None),
    ("copies of others", [*previews(0.1, 0.2), copy_of(1), copy_of(0, "RUNNING")], None),
    ("waiting", [*previews(0.1), copy_of(0), copy_of(0, "RUNNING")], 1),
    ("running", [*previews(0.1), copy_of(0, "RUNNING"), copy_of(0, "RUNNING")], 1),
    ("complete", [*previews(0.1), copy_of(0, "COMPLETE"), copy_of(0, "RUNNING")], 1),
    (
        "pruned at a later rung",
        [*previews(0.1), copy_of(0, "PRUNED", later=True), copy_of(0, "RUNNING")],
        1,
    ),
    ("pruned at its preview", [*previews(0.1), copy_of(0, "PRUNED"), copy_of(0, "RUNNING")], None),
    (
        "gave way, not yet pruned",
        [*previews(0.1), copy_of(0, "RUNNING", preview_decision="prune"), copy_of(0, "RUNNING")],
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
    ("trials", "sibling"), [row[1:] for row in DUPLICATES], ids=[row[0] for row in DUPLICATES]
)
def test_is_duplicate_promotion(trials: list[FrozenTrial], sibling: int | None) -> None:
    assert is_duplicate_promotion(history(*trials), trials[-1]) == sibling


def test_the_copy_of_the_lowest_number_is_no_duplicate() -> None:
    trials = history(*previews(0.1), copy_of(0, "RUNNING"), copy_of(0, "COMPLETE"))
    assert is_duplicate_promotion(trials, trials[1]) is None


OVER_BUDGET: list[tuple[str, list[FrozenTrial], bool]] = [
    # name, trials (the last one asks; one slot), whether it has to give way
    ("the slot is free", [*previews(0.1, 0.2, 0.3, 0.4), copy_of(3)], False),
    ("an earlier copy", [*previews(0.1, 0.2, 0.3, 0.4), copy_of(2), copy_of(3)], True),
    (
        "an earlier copy that gave way",
        [*previews(0.1, 0.2, 0.3, 0.4), copy_of(2, preview_decision="prune"), copy_of(3)],
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
        "a trial that kept its own claim",
        [*previews(0.1, 0.2, 0.3), trial(0.4, "RUNNING", PROMOTED), copy_of(2)],
        True,
    ),
    ("alone, though the slot has gone", [*previews(0.1, 0.2, 0.3), copy_of(2)], False),
    ("the slot has gone", [*previews(0.1, 0.2, 0.3), copy_of(1), copy_of(2)], True),
]


@pytest.mark.parametrize(
    ("trials", "expected"), [row[1:] for row in OVER_BUDGET], ids=[row[0] for row in OVER_BUDGET]
)
def test_is_over_budget(trials: list[FrozenTrial], expected: bool) -> None:
    assert is_over_budget(history(*trials), trials[-1], OPEN) is expected


@pytest.mark.parametrize(
    ("others", "holds"),
    [
        ([], True),
        ([trial(0.1, "RUNNING", {"preview_claim": True})], False),
        ([trial(0.1, "RUNNING", {"preview_claim": True, **PRUNED})], True),
        ([copy_of(0)], False),
    ],
)
def test_of_two_claims_on_one_slot_none_is_sure(others: list[FrozenTrial], holds: bool) -> None:
    claiming = trial(0.9, "RUNNING", {"preview_claim": True})
    trials = history(*previews(0.1, 0.2, 0.3), claiming, *others)
    assert claim_holds(trials, 3, OPEN) is holds


def test_ledger_of_a_copy_of_a_clone_is_that_of_the_first_attempt() -> None:
    trials = history(
        trial(0.9, "FAIL", PRUNED),
        trial(0.9, "PRUNED", PRUNED, [0]),
        copy_of(1, "FAIL"),
        copy_of(1),
    )
    ledger = read_ledger(trials)
    assert ledger.previews == {0}
    assert ledger.claims == {0}
    assert ledger.copies == {0: 2}
    assert ledger.candidates == ()
