"""The sequential test behind races: its error rate, and what it never does."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom

from optuna_merge.previews._race_test import Array, RaceTest

LOOKS = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4)


def mean(metrics: Array) -> Array:
    return metrics.mean(-1)


def worst(metrics: Array) -> Array:
    return metrics.min(-1)


def geometric(metrics: Array) -> Array:
    return np.log(np.maximum(metrics + 5, 1e-9)).mean(-1)


def equally_good(
    rng: np.random.Generator, size: int, differing: float, better: float
) -> tuple[Array, Array]:
    """Two accuracies: as many examples won as lost, and a share more won, at random places."""
    reference = (rng.random(size) < 0.8).astype(float)
    candidate = reference.copy()
    wrong = rng.permutation(np.flatnonzero(reference == 0))
    swaps = min(rng.binomial(size, differing / 2), len(wrong))
    candidate[wrong[: swaps + round(better * size)]] = 1.0
    candidate[rng.permutation(np.flatnonzero(reference))[:swaps]] = 0.0
    return reference, candidate


def heavy_tailed(
    rng: np.random.Generator, size: int, differing: float, better: float
) -> tuple[Array, Array]:
    """Values of which a share differs, by Student's t of two degrees with a given mean."""
    reference = rng.normal(size=size)
    candidate = reference.copy()
    places = np.flatnonzero(rng.random(size) < differing)
    if len(places):
        differences = rng.standard_t(2, len(places))
        candidate[places] += differences - differences.mean() + better * size / len(places)
    return reference, candidate


def stopped(test: RaceTest, candidate: list[Array]) -> bool:
    return any(
        test.is_lost([values[: round(len(values) * look)] for values in candidate])
        for look in LOOKS
    )


@pytest.mark.parametrize("sizes", [(40, 40, 40), (60, 400, 1500)])
@pytest.mark.parametrize(
    ("differing", "better"), [(0.02, 0.0), (0.3, 0.0), (0.0, 0.02), (0.02, 0.1)]
)
@pytest.mark.parametrize(
    ("score", "data"), [(mean, equally_good), (worst, equally_good), (geometric, heavy_tailed)]
)
def test_what_reaches_the_bar_is_given_up_with_probability_alpha_at_most(
    sizes: tuple[int, ...],
    differing: float,
    better: float,
    score: Callable[[Array], Array],
    data: Callable[[np.random.Generator, int, float, float], tuple[Array, Array]],
) -> None:
    """Candidates are exactly as good as the bar, and better than the reference: the hard cases."""
    alpha, races = 0.05, 200
    rng = np.random.default_rng(0)
    given_up = 0
    for _ in range(races):
        pairs = [data(rng, size, differing, better) for size in sizes]
        references, candidate = ([pair[i] for pair in pairs] for i in (0, 1))
        bar = float(score(np.array([values.mean() for values in candidate])))
        test = RaceTest(
            references, bar - 1e-12, score, [1.0] * len(sizes), True, alpha, len(LOOKS)
        )
        given_up += stopped(test, candidate)
    # More than this many has a chance of one in ten thousand at an error rate of alpha.
    assert given_up <= binom.ppf(1 - 1e-4, races, alpha)


@pytest.mark.parametrize("maximize", [True, False])
def test_what_is_far_below_the_bar_is_given_up_early(maximize: bool) -> None:
    rng = np.random.default_rng(0)
    sign = 1.0 if maximize else -1.0
    references = [sign * (rng.random(400) < 0.8) for _ in range(3)]
    candidate = [sign * (rng.random(400) < 0.5) for _ in range(3)]
    test = RaceTest(references, sign * 0.8, mean, [sign] * 3, maximize, 0.01, 6)
    assert test.is_lost([values[:50] for values in candidate])
    better = [sign * (rng.random(400) < 0.95) for _ in range(3)]
    assert not any(test.is_lost([values[:n] for values in better]) for n in range(1, 400))


def test_a_single_much_worse_task_decides_the_worst_metric() -> None:
    rng = np.random.default_rng(1)
    references = [(rng.random(400) < 0.8).astype(float) for _ in range(3)]
    candidate = [references[0], references[1], (rng.random(400) < 0.4).astype(float)]
    test = RaceTest(references, 0.75, worst, [1.0] * 3, True, 0.01, 6)
    assert test.is_lost([values[:60] for values in candidate])


def test_few_examples_and_few_disagreements_decide_nothing() -> None:
    reference, candidate = np.ones(1000), np.ones(1000)
    test = RaceTest([reference], 1.0, mean, [1.0], True, 0.01, 6)
    candidate[:7] = 0.0
    assert not test.is_lost([candidate[:7]])
    candidate[7:] = 1.0
    candidate[4:7] = 1.0
    assert not test.is_lost([candidate[:100]])  # four of four disagreements lost: one in sixteen


def test_no_disagreement_yet_is_no_evidence_of_being_equal() -> None:
    rng = np.random.default_rng(0)
    references = [(rng.random(400) < 0.8).astype(float) for _ in range(3)]
    bar = float(np.mean(references)) + 0.02
    test = RaceTest(references, bar, mean, [1.0] * 3, True, 0.01, 6)
    assert not test.is_lost([values[:20] for values in references])
    assert test.is_lost([values[:380] for values in references])


def test_at_the_end_nothing_is_uncertain_but_one_example() -> None:
    rng = np.random.default_rng(0)
    reference = (rng.random(400) < 0.8).astype(float)
    candidate = reference.copy()
    candidate[np.flatnonzero(reference)[:12]] = 0.0
    test = RaceTest([reference], float(reference.mean()), mean, [1.0], True, 0.01, 6)
    assert test.is_lost([candidate])
    assert math.isclose(test.estimate([candidate]).errors[0], 0.0)
    assert test.estimate([candidate]).means[0] == pytest.approx(candidate.mean())


def test_the_estimate_is_centred_on_the_metric_of_all_examples() -> None:
    rng = np.random.default_rng(0)
    reference, candidate = equally_good(rng, 400, 0.2, 0.0)
    test = RaceTest([reference], 0.0, mean, [1.0], True, 0.01, 6)
    found, errors = [], []
    for _ in range(500):
        order = rng.permutation(400)
        shuffled = RaceTest([reference[order]], 0.0, mean, [1.0], True, 0.01, 6)
        estimate = shuffled.estimate([candidate[order][:100]])
        found.append(estimate.means[0])
        errors.append(estimate.errors[0])
    assert np.mean(found) == pytest.approx(candidate.mean(), abs=4 * np.std(found) / 500**0.5)
    assert np.std(found) == pytest.approx(np.mean(errors), rel=0.15)
    assert test.bar == 0.0


def test_values_that_are_not_finite_are_left_to_the_full_preview() -> None:
    test = RaceTest([np.zeros(100)], 1.0, mean, [1.0], True, 0.01, 6)
    assert not test.is_lost([np.full(50, np.nan)])
