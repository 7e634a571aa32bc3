"""The last finetunes of a budget are second seeds of the best weights; what budgets count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from study_helpers import fitted_toys

import optuna_merge as om
from optuna_merge.pruners import Budget, Ledger
from optuna_merge.pruners._decision import duplicate_promotion, is_over_budget
from optuna_merge.pruners._second_seeds import second_seeds_left, worth_repeating
from optuna_merge.reports._notes import trial_note
from optuna_merge.trials import Record, read_study, spending, study_spending

NAMES = ("red", "blue")


def record(number: int, red: float, value: float | None, **changes: Any) -> Record:
    """A finetune at a weight of the first task, or a preview."""
    fields: dict[str, Any] = {
        "number": number,
        "state": TrialState.PRUNED if value is None else TrialState.COMPLETE,
        "lineage": number,
        "retries": (),
        "weights": (red, 1 - red),
        "params": (red, 1 - red),
        "preview": 0.5,
        "values": () if value is None else (value,),
        "preview_metrics": (0.5, 0.5),
        "preview_se": (math.nan, math.nan),
        "truth_metrics": (math.nan, math.nan),
        "is_at_anchor": False,
        "preview_taken": False,
        "is_baseline": False,
        "is_copy": value is not None,
        "repeat": 0,
        "promotion": None,
        "reported": True,
        "noted": True,
        "last_step": 0 if value is None else 7,
        "preview_seconds": 1.0,
        "truth_seconds": math.nan if value is None else 10.0,
        "reused": False,
        "can_be_copied": True,
    }
    return Record(**(fields | changes))


def ledger(claims: int, repeats: int = 0, **changes: Any) -> Ledger:
    """So many copies that have ended, the last of them repeats."""
    made = Ledger(
        previews=frozenset(range(100)),
        finetuned=frozenset(),
        copies={i: i for i in range(claims)},
        candidates=(),
        repeats=frozenset(range(claims - repeats, claims)),
    )
    return replace(made, **changes)


@pytest.mark.parametrize(
    ("claims", "repeats", "cap", "left"),
    [
        (0, 0, 2, 0),  # of two promotions none is a repeat
        (2, 0, 3, 1),
        (0, 0, 8, 2),
        (6, 0, 8, 2),
        (7, 1, 8, 1),
        (8, 2, 8, 0),
        (7, 0, 8, 1),  # no more than is left
        (0, 0, None, 0),
    ],
)
def test_the_last_two_are_kept_but_not_more_than_a_third(
    claims: int, repeats: int, cap: int | None, left: int
) -> None:
    budget = Budget(max_promotions=cap)
    assert second_seeds_left(ledger(claims, repeats), budget, 2) == left


def test_the_best_without_a_second_seed_are_repeated() -> None:
    records = [
        record(0, 0.5, 0.6, is_baseline=True, is_copy=False),
        record(1, 1.0, 0.9, is_baseline=True, is_copy=False),  # a task alone is no candidate
        record(2, 0.5, 0.7, is_baseline=True, is_copy=False, repeat=1),
        record(3, 0.2, 0.8),
        record(4, 0.3, None),
        record(5, 0.4, 0.65),
        record(6, 0.6, 0.99),  # not feasible
        record(7, 0.7, 0.75),
        record(8, 0.8, 0.85, can_be_copied=False),
    ]
    able = [r.number != 6 for r in records]

    def chosen(n: int, *more: Record, maximize: bool = True) -> list[int]:
        found = worth_repeating(
            [*records, *more], [*able, *[True] * len(more)], maximize=maximize, n=n
        )
        return [r.number for r in found]

    assert chosen(2) == [3, 7] and chosen(1) == [3]
    assert chosen(2, maximize=False) == [5, 7]
    assert chosen(2, record(9, 0.2, 0.5, repeat=1)) == [7, 5]
    waiting = {"state": TrialState.WAITING, "values": ()}
    assert chosen(2, record(9, 0.2, 0.5, repeat=1, **waiting)) == [7, 5]
    assert chosen(2, record(9, 0.9, 0.5, **waiting)) == [], "it may be better"
    withdrawn = record(9, 0.2, None, is_copy=True, repeat=1, promotion="withdrawn")
    assert chosen(1, withdrawn) == [3]


def test_of_two_workers_repeats_of_equal_weights_one_runs() -> None:
    waiting: dict[str, Any] = {"state": TrialState.WAITING, "values": (), "promotion": "queued"}
    first, second = (record(n, 0.2, 0.5, repeat=1, **waiting) for n in (4, 5))
    other = record(6, 0.3, 0.5, repeat=1, **waiting)
    source = record(3, 0.2, 0.8)
    records = [source, first, second, other]
    assert [duplicate_promotion(records, r) for r in records] == [None, None, 4, None]


@pytest.mark.parametrize(
    ("spent", "under_way", "fits"),
    [(7.0, 0, 3), (7.6, 0, 2), (7.0, 2, 1), (9.51, 0, 0), (12, 0, 0)],
)
def test_another_finetune_begins_where_half_of_it_fits(
    spent: float, under_way: int, fits: int
) -> None:
    budget = Budget(fraction=1.0, warmup=0, finetunes=10)
    book = ledger(2, spent=spent, under_way=frozenset(range(under_way)))
    assert budget.free(book, book.claims) == budget.left(book) == fits
    assert budget.is_spent(book) == (fits == 0)
    copy = record(99, 0.2, None, is_copy=True, state=TrialState.RUNNING)
    assert is_over_budget(replace(book, copies={99: 99}), copy, budget) == (10 - spent < 0.5)


def test_spending_is_counted_in_finetunes_at_uniform_weights() -> None:
    costs = {"task_run_steps": 14, "task_run_seconds": 12.0, "posterior_seconds": 4.0}
    records = [
        record(0, 0.5, 0.6, is_baseline=True, is_copy=False, truth_seconds=8.0),
        record(1, 1.0, 0.6, is_baseline=True, is_copy=False, truth_seconds=6.0, reused=True),
        record(2, 0.5, 0.6, is_baseline=True, is_copy=False, repeat=1, truth_seconds=12.0),
        record(3, 0.2, None),
        record(4, 0.2, 0.8, lineage=3),
        record(5, 0.3, None, is_copy=True, last_step=3, truth_seconds=5.0),  # stopped at a rung
    ]
    found = spending(records, costs, 2, 7)
    assert found.seconds == 10.0
    assert (found.task_runs, found.posteriors) == (1.2, 0.4)
    assert found.previews == pytest.approx(0.3), "copies and repeats have none of their own"
    assert found.finetunes == pytest.approx((8 + 12 + 10 + 5) / 10)
    assert found.said(10).startswith("5.4 of 10 finetunes' worth of time, 4.6 left")
    early = spending(records[3:4], costs, 2, 7)
    assert early.seconds == 6.0, "before uniform weights are finetuned it is a task run"


def test_steps_are_counted_where_seconds_are_not_known() -> None:
    records = [
        record(0, 0.5, 0.6, truth_seconds=0.0),
        record(1, 0.4, None, last_step=3, truth_seconds=0.0),
        record(2, 0.3, None),
    ]
    found = spending(records, {"task_run_steps": 14}, 2, 7)
    assert (found.task_runs, found.previews, found.seconds) == (2.0, 0.0, None)
    assert found.finetunes == pytest.approx(10 / 7)
    assert spending([], {}, 2, None).total == 0


def kinds(study: optuna.Study) -> Sequence[tuple[int, str | None]]:
    """Of the finished finetunes that were queued, their repeat and what became of them."""
    return [
        (t.user_attrs.get("repeat", 0), t.user_attrs["promotion"])
        for t in study.trials
        if t.state == TrialState.COMPLETE and "promotion" in t.user_attrs
    ]


def test_the_last_promotions_of_a_study_are_second_seeds(tmp_path: Path) -> None:
    fitted = fitted_toys(tmp_path, NAMES)
    study = om.open_search(
        fitted, "toys", seed=0, fraction=0.5, max_promotions=6, stop_when_flat=False
    )
    study.optimize(om.Objective(fitted, progress=False), n_trials=40)
    assert kinds(study) == [(0, "begun")] * 4 + [(1, "begun")] * 2
    findings = read_study(study)
    again = [of for of in findings.weightings if len(of.finetunes) == 2]
    firsts = sorted((o for o in findings.truths if o.kind == "promoted" and not o.repeat),
                    key=lambda o: -(o.truth or 0))  # fmt: skip
    others = [of for of in again if of.first.baseline is None]
    # by value: truths of so few examples tie
    best = sorted(o.truth or 0 for o in firsts[:2])
    assert sorted(of.first.truth or 0 for of in others) == pytest.approx(best)
    for of in others:
        first, second = of.finetunes
        assert second.previews == first.previews and not second.previewed
        trial = study.trials[second.trial]
        assert not trial.user_attrs["truth_reused"]
    assert "a second seed of weights" in trial_note(findings, others[0].finetunes[1])


def test_a_budget_ends_the_run_and_begins_nothing_beyond(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fitted = fitted_toys(tmp_path, NAMES)
    # Seconds as they would be on an idle machine: a finetune 10, a preview a tenth of that.
    fitted.costs.update(task_run_seconds=20.0, posterior_seconds=10.0)
    study = om.open_search(fitted, "toys", seed=0, fraction=0.5, budget=12, stop_when_flat=False)
    bench = Timed(fitted)
    caplog.set_level("INFO")
    objective = om.Objective(bench, progress=False)  # type: ignore[arg-type]
    om.run_trials(study, objective, workdir=tmp_path, n_trials=100)
    assert "the search stops: the budget of 12 finetunes is spent" in caplog.text
    spent = study_spending(study)
    assert spent.seconds == 10.0 and spent.task_runs == 2.0 and spent.posteriors == 1.0
    assert 11.5 < spent.total <= 12.5
    assert [repeat for repeat, _ in kinds(study)][-1] == 1
    assert not study.get_trials(states=(TrialState.WAITING,))
    before = len(study.trials)
    assert om.run_trials(study, objective, workdir=tmp_path, n_trials=100) == 0
    assert len(study.trials) == before
    report = om.make_report(study, fitted)
    assert report["spent"]["total"] == pytest.approx(spent.total)
    assert " of 12 finetunes' worth of time, " in om.format_report(report)


class Timed:
    """A workbench whose previews and finetunes take known seconds."""

    def __init__(self, fitted: om.FittedStudy) -> None:
        self._fitted = fitted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fitted, name)

    def preview(self, weights: dict[str, float]) -> Any:
        return replace(self._fitted.preview(weights), seconds=1.0)

    def finetune(self, *args: Any, **options: Any) -> Any:
        return replace(self._fitted.finetune(*args, **options), seconds=10.0)
