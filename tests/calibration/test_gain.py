"""What the best weights gain over uniform ones, less the luck of having been chosen."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial

from optuna_merge.calibration import Noise, estimated_gain
from optuna_merge.calibration._gain import shrunken_difference
from optuna_merge.trials import read_study


def study_of(
    rows: list[tuple[float, float, str | None, int]], direction: str = "maximize"
) -> optuna.Study:
    """Finetunes of two tasks: weight of the first, score, baseline, repeat."""
    study = optuna.create_study(direction=direction)
    for weight, score, baseline, repeat in rows:
        attrs = {"repeat": repeat} | ({} if baseline is None else {"baseline": baseline})
        study.add_trial(
            create_trial(
                value=score,
                params={"w_a": weight, "w_b": 1 - weight},
                distributions={f"w_{n}": FloatDistribution(0, 1) for n in "ab"},
                user_attrs=attrs,
            )
        )
    return study


ROWS = [
    (0.5, 0.60, "uniform", 0),
    (1.0, 0.10, "a", 0),
    (0.0, 0.20, "b", 0),
    (0.5, 0.62, "uniform", 1),
    (0.3, 0.70, None, 0),
    (0.4, 0.65, None, 0),
]


@pytest.mark.parametrize("sign", [1, -1])
def test_the_gain_is_that_of_the_means_of_repeats(sign: int) -> None:
    rows = [(w, sign * score, b, r) for w, score, b, r in [*ROWS, (0.3, 0.66, None, 1)]]
    study = study_of(rows, "maximize" if sign > 0 else "minimize")
    found = estimated_gain(read_study(study), Noise(0.005, "repeats", 1, 40.0))
    assert found is not None
    assert found.seen == pytest.approx(0.68 - 0.61)
    assert found.count == 3, "the tasks alone are no candidates"
    assert 0.06 < found.expected < 0.07 and found.is_evident


def test_nothing_is_known_without_noise_uniform_weights_or_others() -> None:
    noise = Noise(0.01, "repeats", 1)
    assert estimated_gain(read_study(study_of(ROWS)), None) is None
    assert estimated_gain(read_study(study_of(ROWS)), Noise(None, "unknown")) is None
    assert estimated_gain(read_study(study_of(ROWS[1:3])), noise) is None
    assert estimated_gain(read_study(study_of(ROWS[:4])), noise) is None


def test_where_uniform_weights_are_best_it_is_no_gain() -> None:
    rows = [(w, 0.5 if b is None else score, b, r) for w, score, b, r in ROWS]
    found = estimated_gain(read_study(study_of(rows)), Noise(0.005, "repeats", 1, 40.0))
    assert found is not None and found.expected < 0 and not found.is_evident


def test_a_task_alone_that_is_best_is_the_one_that_is_judged() -> None:
    found = estimated_gain(
        read_study(study_of([*ROWS[:4], (0.4, 0.65, None, 0), (1.0, 0.9, None, 1)])),
        Noise(0.005, "repeats", 1, 40.0),
    )
    assert found is not None and found.seen == pytest.approx(0.65 - 0.61)
    rows = [(w, 0.9 if b == "b" else score, b, r) for w, score, b, r in ROWS]
    found = estimated_gain(read_study(study_of(rows)), Noise(0.005, "repeats", 1, 40.0))
    assert found is not None and found.seen == pytest.approx(0.9 - 0.61)


def test_the_choice_of_the_best_of_equals_is_no_gain() -> None:
    """Of truths that differ by noise alone, simulated: seen a gain, expected hardly any."""
    rng = np.random.default_rng(0)
    seen, expected = [], []
    for _ in range(300):
        others = np.sort(0.01 * rng.normal(size=7))[::-1]
        uniform = 0.01 * rng.normal(size=2).mean()
        values = [others[0], uniform, *others[1:]]
        seen.append(others[0] - uniform)
        expected.append(shrunken_difference(values, [1, 2, *[1] * 6], 0.01, 20.0)[0])
    assert np.mean(seen) > 0.012 and np.mean(expected) < 0.004


@pytest.mark.parametrize("spread", [0.02, 0.1])
def test_where_weights_differ_it_is_neither_too_large_nor_too_small(spread: float) -> None:
    rng = np.random.default_rng(1)
    errors, units = [], []
    for _ in range(300):
        true = spread * rng.normal(size=8)
        truths = true + 0.02 * rng.normal(size=8)
        order = [1 + int(np.argmax(truths[1:])), 0]
        order += [i for i in range(8) if i not in order]
        found, error, _ = shrunken_difference(truths[order], np.ones(8), 0.02, 20.0)
        errors.append(found - (true[order[0]] - true[0]))
        units.append(errors[-1] / error)
    assert abs(np.mean(errors)) < 0.3 * 0.02
    assert 0.8 < np.sqrt(np.mean(np.square(units))) < 1.2


@pytest.mark.parametrize("gain", [3.0, 12.0, 30.0])
def test_a_large_gain_of_all_that_was_searched_is_told_as_large(gain: float) -> None:
    """A search that found much: all its weights are that much better than uniform ones."""
    rng = np.random.default_rng(2)
    errors, units = [], []
    for _ in range(200):
        true = gain + 0.3 * rng.normal(size=8)
        truths = np.sort(true + rng.normal(size=8))[::-1]
        best = float(true[int(np.argmax(truths))])
        found, error, chance = shrunken_difference(
            [truths[0], rng.normal() / np.sqrt(2), *truths[1:]], [1, 2, *[1] * 7], 1.0, 4.0
        )
        assert chance <= 1.0
        errors.append(found - best)
        units.append(errors[-1] / error)
    assert abs(np.mean(errors)) < 1.5, "all but the luck of the best of eight"
    assert np.sqrt(np.mean(np.square(units))) < 1.2


def test_one_bad_weighting_says_nothing_of_how_much_good_ones_differ() -> None:
    values = [0.52, 0.50, 0.51, 0.505, 0.495]
    without = shrunken_difference(values, np.ones(5), 0.02, 20.0)[0]
    bad = shrunken_difference([*values, -3.0], np.ones(6), 0.02, 20.0)[0]
    assert without < 0.01 and bad < 0.012
