"""What another preview is worth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from optuna_merge.surrogate import (
    Improvement,
    PreviewWorth,
    ScoreImprovement,
    ScoreModel,
    TruthImprovement,
    TruthModel,
    front_improvement,
    maximise,
)
from optuna_merge.trials import Series

GRID = np.random.default_rng(9).dirichlet(np.ones(3), 200)
BEST = np.array([0.6, 0.3, 0.1])
NOTHING = np.empty((0, 3))


def truth(w: np.ndarray) -> np.ndarray:
    return -np.square(w - BEST).sum(axis=1)


def other(w: np.ndarray) -> np.ndarray:
    return np.sin(9 * w[:, 0]) * np.cos(7 * w[:, 1])


def series(n: int, m: int, *, bad: bool = False, sign: float = 1.0, seed: int = 0) -> Series:
    w = np.random.default_rng(seed).dirichlet(np.ones(3), n)
    preview = other(w) if bad else 0.5 * truth(w) - 3.0
    return Series(w, sign * preview, w[:m], sign * truth(w[:m]), sign=sign)


def scored(data: Series, sign: float = 1.0) -> ScoreImprovement:
    """The mean of three metrics, of which each is the data's."""
    return ScoreImprovement(
        ScoreModel([TruthModel.fit(data)] * 3, lambda y: y.mean(axis=-1)), sign
    )


def front(data: Series) -> Improvement:
    return front_improvement(
        [TruthModel.fit(data), TruthModel.fit(replace(data, truths=data.truth_weights[:, 0]))],
        (1.0, 1.0),
        np.random.default_rng(0),
    )


KINDS = {"truth": lambda s: TruthImprovement(TruthModel.fit(s)), "score": scored, "front": front}


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_lookahead_splits_the_variance(sign: float) -> None:
    data = series(12, 4, sign=sign)
    model = TruthModel.fit(data)
    mean, moved, left = model.lookahead(GRID)
    expected, std = model.predict(GRID)
    assert mean == pytest.approx(expected)
    assert np.hypot(moved, left) == pytest.approx(std)
    there = model.lookahead(data.preview_weights)[1]
    assert there.max() < 0.3 * moved.max()
    # With more previews there is less to learn from another one.
    assert (
        model.lookahead(GRID)[1].mean() > TruthModel.fit(series(60, 4)).lookahead(GRID)[1].mean()
    )


def test_no_preview_changes_a_model_without_previews() -> None:
    data = series(12, 6)
    alone = replace(data, preview_weights=NOTHING, previews=np.empty(0))
    model = TruthModel.fit(alone)
    _, moved, left = model.lookahead(GRID)
    assert moved == pytest.approx(0.0)
    assert left == pytest.approx(model.predict(GRID)[1])


def test_the_previews_to_come_average_to_what_is_expected_now() -> None:
    data = series(12, 5)
    for improvement in (KINDS["truth"](data), scored(data)):
        after = improvement.after_previews(GRID)
        assert after.shape == (8, len(GRID))
        now = improvement(GRID)
        mean = np.logaddexp.reduce(after, axis=0)
        likely = now > now.max() - 3.0
        apart = (mean - now)[likely]  # but for one constant
        assert np.ptp(apart) < 0.7


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_preview_is_worth_most_where_it_teaches(kind: str) -> None:
    data = series(12, 5)
    improvement = KINDS[kind](data)
    candidates = data.preview_weights[5:]
    worth = PreviewWorth(improvement, candidates)
    assert worth.share(candidates) < 0.1 * worth.share(GRID)  # they say nothing new
    values = worth(GRID)
    assert values.shape == (len(GRID),)
    assert np.isfinite(values).all()


@pytest.mark.parametrize("kind", list(KINDS))
def test_without_candidates_the_improvement_decides(kind: str) -> None:
    improvement = KINDS[kind](series(12, 5))
    worth = PreviewWorth(improvement, NOTHING)
    assert worth.share(GRID) == np.inf
    order = np.argsort(improvement(GRID))
    assert worth(GRID)[order[-1]] > np.median(worth(GRID))


def test_of_hundreds_of_candidates_those_of_the_best_expected_quality_are_compared() -> None:
    data = series(30, 10)
    improvement = KINDS["truth"](data)
    many = np.random.default_rng(3).dirichlet(np.ones(3), 1000)
    best = many[np.argsort(-improvement.merit(many))[:200]]
    whole, screened = PreviewWorth(improvement, many), PreviewWorth(improvement, best)
    np.testing.assert_array_equal(whole(GRID), screened(GRID))
    # And nothing better was left out: any of the others would have raised what is compared with.
    others = np.array([w for w in many if not (best == w).all(axis=1).any()])
    assert improvement(others).max() < improvement(best).max()


def test_what_is_promising_already_leaves_less_to_find() -> None:
    improvement = KINDS["truth"](series(12, 5))
    poor = np.array([[0.0, 0.1, 0.9], [0.1, 0.8, 0.1]])
    good = np.concatenate([poor, [[0.55, 0.33, 0.12]]])
    assert PreviewWorth(improvement, good).share(GRID) < PreviewWorth(improvement, poor).share(
        GRID
    )


def test_previews_that_say_nothing_are_worth_less() -> None:
    shares = []
    for bad in (False, True):
        data = series(30, 14, bad=bad)
        worth = PreviewWorth(KINDS["truth"](data), data.preview_weights[14:])
        shares.append((worth._improvement.after_previews(GRID).std(axis=0)).mean())
    assert shares[1] < shares[0]


def test_nothing_is_suggested_beside_a_preview_while_there_is_anything_else() -> None:
    data = series(12, 5)
    improvement = KINDS["truth"](data)
    same = lambda w: w  # noqa: E731
    rng = np.random.default_rng(0)
    free = maximise(improvement, 3, same, same, data.preview_weights, 500, rng)
    seen = np.concatenate([data.preview_weights, free[None]])
    for _ in range(3):
        rng = np.random.default_rng(0)
        found = maximise(improvement, 3, same, same, seen, 500, rng, previewed=seen)
        assert np.abs(seen - found).max(axis=1).min() > 0.03
        seen = np.concatenate([seen, found[None]])
    everywhere = np.random.default_rng(1).dirichlet(np.ones(3), 20_000)
    everywhere = np.concatenate([everywhere, np.eye(3)])
    found = maximise(improvement, 3, same, same, seen, 500, rng, previewed=everywhere)
    assert found.sum() == pytest.approx(1.0)
