"""How much replay: the answer where it is known, and what is no question of it."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import optuna
import pytest
from replay_helpers import ANSWER, KEEP, SharesBench, general, own, searched
from study_helpers import study_by_hand

from optuna_merge.surrogate import MetricCurve, keeping, own_task, replay


@pytest.fixture(scope="module")
def study() -> optuna.Study:
    return searched(SharesBench())


def test_the_best_share_is_found(study: optuna.Study) -> None:
    found = replay(study, "general", KEEP)
    assert found.bound == pytest.approx(KEEP * found.alone)
    assert found.best is not None and found.cautious is not None
    assert found.best.share == pytest.approx(ANSWER, abs=0.04)
    assert found.best.own == pytest.approx(own(ANSWER), abs=0.02)
    assert found.best.share <= found.cautious.share
    assert found.best.chance <= found.cautious.chance >= 0.9
    assert found.close is not None
    assert found.close[0] <= found.best.share <= found.close[1]
    truth = found.finetuned_best
    assert truth is not None and truth.keeps
    assert own(ANSWER) - truth.own < 0.05, "and the search has finetuned near it"
    assert [of.share for of in found.finetuned] == sorted(of.share for of in found.finetuned)
    uniform = next(of for of in found.finetuned if of.name == "uniform")
    assert uniform.seeds == 2


def test_the_curves_have_the_truth_in_their_intervals_where_it_was_searched(
    study: optuna.Study,
) -> None:
    found = replay(study, "general", KEEP)
    near = np.abs(np.array(found.shares) - ANSWER) < 0.15

    def inside(curve: MetricCurve, function: Any) -> float:
        values = np.array([function(share) for share in found.shares])
        within = (np.array(curve.low) <= values) & (values <= np.array(curve.high))
        return float(within[near].mean())

    assert inside(found.own, own) >= 0.7
    assert inside(found.general, general) >= 0.7
    assert (found.shares[0], found.shares[-1]) == (0.0, 1.0)


def test_another_bound_is_answered_by_the_same_study(study: optuna.Study) -> None:
    strict, loose = (replay(study, "general", keep).best for keep in (0.97, 0.9))
    assert strict is not None and loose is not None
    assert loose.share < ANSWER < strict.share
    assert loose.own > strict.own
    swapped = replay(study, "own", 0.5)
    assert swapped.own.task == "general" and swapped.best is not None
    assert swapped.best.share == pytest.approx(0.2, abs=0.08), "where own is half of own alone"


def test_of_a_loss_at_most_one_over_it_is_allowed() -> None:
    """The losses are one over the metrics, so that the answer is the same."""
    found = replay(searched(SharesBench(losses=True)), "general", KEEP)
    assert found.bound == pytest.approx(found.alone / KEEP)
    assert not found.general.greater_is_better
    assert found.best is not None
    assert found.best.share == pytest.approx(ANSWER, abs=0.06)
    assert found.finetuned_best is not None
    assert found.finetuned_best.general <= found.bound
    assert math.isclose(found.best.general, found.bound, rel_tol=0.02)


def test_a_study_of_another_score_answers_too() -> None:
    found = replay(searched(SharesBench("mean", keep=None)), "general", KEEP)
    assert found.best is not None
    assert found.best.share == pytest.approx(ANSWER, abs=0.06)


def test_what_is_no_question_of_replay_is_refused(study: optuna.Study) -> None:
    three = study_by_hand(("a", "b", "c"), 8, 5)
    for of, task, keep, told in (
        (three, "c", 0.95, "two tasks, own data and a general set, and here are 3: a, b, c"),
        (study, "chat", 0.95, "no task 'chat' among ['own', 'general']"),
        (study, "general", 0.0, "keep is 0; expected the share of the metric of general"),
        (study, "general", 95, "keep is 95; expected"),
        (study, "general", math.nan, "keep is nan; expected"),
        (study_by_hand(("own", "general"), 8, 1), "general", 0.95, "not been finetuned alone"),
    ):
        with pytest.raises(ValueError, match=re.escape(told)):
            replay(of, task, keep)
    assert own_task(("a", "b"), "a") == "b"
    assert keeping("b", 1.0).of_alone == 1.0
