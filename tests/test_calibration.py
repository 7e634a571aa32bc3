from __future__ import annotations

import json
import math

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from scipy.stats import kendalltau, linregress, spearmanr

from optuna_merge.calibration import (
    MIN_TRUTHS,
    calibrate,
    format_calibration,
    rank_correlation,
    study_calibration,
)


def test_it_is_spearman_s_with_ties() -> None:
    rng = np.random.default_rng(0)
    previews = rng.integers(0, 6, size=30) / 10
    truths = previews + rng.normal(0, 0.2, size=30).round(1)
    found = rank_correlation(list(previews), list(truths))
    assert found is not None
    assert found.value == pytest.approx(spearmanr(previews, truths).statistic)
    assert found.low < found.value < found.high
    assert found.count == 30


@pytest.mark.parametrize("sign", [1, -1])
def test_perfect_order_is_one_in_every_resample(sign: int) -> None:
    previews = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    found = rank_correlation(previews, [sign * p**3 for p in previews])
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((sign, sign, sign))


def test_the_interval_narrows_with_more_pairs_and_widens_with_its_level() -> None:
    def width(count: int, level: float) -> float:
        rng = np.random.default_rng(1)
        x = rng.normal(size=count)
        found = rank_correlation(x, x + rng.normal(size=count), level=level)
        assert found is not None and -1 <= found.low <= found.high <= 1
        return found.high - found.low

    assert width(200, 0.9) < 0.5 * width(20, 0.9)
    assert width(20, 0.5) < width(20, 0.9)


def test_it_is_the_same_for_the_same_seed() -> None:
    values = [0.1, 0.3, 0.2, 0.5, 0.4, 0.7], [0.2, 0.1, 0.3, 0.5, 0.6, 0.4]
    assert rank_correlation(*values) == rank_correlation(*values)
    assert rank_correlation(*values) != rank_correlation(*values, seed=1, resamples=50)


def test_too_few_pairs_say_nothing() -> None:
    few = [0.1 * i for i in range(MIN_TRUTHS)]
    assert rank_correlation(few, few) is not None
    assert rank_correlation(few[1:], few[1:]) is None
    assert rank_correlation([], []) is None
    assert rank_correlation(few, [0.5] * MIN_TRUTHS) is None
    assert rank_correlation([0.5] * MIN_TRUTHS, few) is None


def test_previews_and_truths_come_in_pairs() -> None:
    with pytest.raises(ValueError, match="got 6 previews but 5 truths"):
        rank_correlation([0.1] * 6, [0.1] * 5)


def noisy_pairs(count: int, noise: float, seed: int = 0) -> tuple[list[float], list[float]]:
    rng = np.random.default_rng(seed)
    previews = rng.normal(size=count).round(1)
    return list(previews), list(0.2 + 0.5 * previews + noise * rng.normal(size=count).round(1))


def test_statistics_are_scipy_s() -> None:
    previews, truths = noisy_pairs(25, 0.5)
    found = calibrate(previews, truths)
    assert found.count == 25
    expected = {
        "bias": np.mean(truths) - np.mean(previews),
        "slope": linregress(previews, truths).slope,
        "spearman": spearmanr(previews, truths).statistic,
        "kendall": kendalltau(previews, truths).statistic,
    }
    for name, value in expected.items():
        estimate = getattr(found, name)
        assert estimate.value == pytest.approx(value), name
        assert estimate.low < estimate.value < estimate.high, name
        assert estimate.count == 25
    assert found.offset == pytest.approx(linregress(previews, truths).intercept)


def test_a_resample_is_the_sample_drawn() -> None:
    """Statistics of counts are those of the pairs written out."""
    from optuna_merge.calibration._estimates import bootstrap_counts, kendall, slope, spearman

    x, y = (np.array(values) for values in noisy_pairs(12, 1.0))
    counts = bootstrap_counts(12, 20, seed=3)
    assert (counts.sum(1) == 12).all()
    for statistic, reference in (
        (spearman, lambda a, b: spearmanr(a, b).statistic),
        (kendall, lambda a, b: kendalltau(a, b).statistic),
        (slope, lambda a, b: linregress(a, b).slope),
    ):
        written_out = [c.astype(int) for c in counts]
        expected = [reference(x.repeat(c), y.repeat(c)) for c in written_out]
        np.testing.assert_allclose(statistic(x, y, counts), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("slope", "noise", "verdict"),
    [
        (1.0, 0.1, "previews rank weights"),
        (0.0, 1.0, "no evidence of correlation"),
        (-1.0, 0.1, "previews mislead"),
    ],
)
def test_verdicts(slope: float, noise: float, verdict: str) -> None:
    rng = np.random.default_rng(5)
    previews = rng.normal(size=20)
    found = calibrate(previews, slope * previews + noise * rng.normal(size=20))
    assert found.verdict == verdict
    assert (found.warning is None) == (verdict == "previews rank weights")


def test_of_too_few_truths_nothing_is_said() -> None:
    values = [0.1 * i for i in range(MIN_TRUTHS)]
    assert calibrate(values, values).verdict == "previews rank weights"
    few = calibrate(values[1:], values[1:])
    assert few.verdict == "too few truths"
    assert few.bias is None and few.top_quartile is None
    alike = calibrate(values, [0.5] * MIN_TRUTHS)
    assert alike.verdict == "too few truths"
    assert alike.spearman is None
    assert alike.bias is not None and alike.bias.value == pytest.approx(0.3)
    assert alike.warning is not None and "all alike" in alike.warning


def test_what_the_best_preview_costs() -> None:
    previews = [0.1, 0.2, 0.3, 0.4, 0.9, 0.8, 0.5, 0.6]
    truths = [0.0, 0.1, 0.2, 0.3, 0.5, 0.4, 0.9, 0.6]
    found = calibrate(previews, truths)
    assert found.argmax_regret == pytest.approx(0.4)
    assert found.top_quartile == 0.0  # truths: the last two, previews: 0.9 and 0.8
    mirrored = calibrate([-p for p in previews], [-t for t in truths], maximize=False)
    assert mirrored.argmax_regret == pytest.approx(0.4)
    assert mirrored.top_quartile == 0.0
    assert calibrate(truths, truths).argmax_regret == 0.0
    assert calibrate(truths, truths).top_quartile == 1.0


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="must be finite"):
        calibrate([0.1, math.nan], [0.1, 0.2])


def previewed_study(weights: list[tuple[float, float]]) -> optuna.Study:
    """Two tasks; the metric of `a` is previewed exactly but for 0.1, that of `b` reversed."""
    study = optuna.create_study(direction="maximize")
    for number, (a, b) in enumerate(weights):
        metrics = {"preview_a": a, "preview_b": b, "truth_a": a + 0.1, "truth_b": -b}
        study.add_trial(
            create_trial(
                params={"w_a": a, "w_b": b},
                distributions=dict.fromkeys(("w_a", "w_b"), FloatDistribution(0, 1)),
                intermediate_values={0: float(number)},
                user_attrs=metrics,
                value=float(number) ** 2,
            )
        )
    return study


def test_a_study_is_judged_where_weights_are_neither_zero_nor_one() -> None:
    inside = [(w, 1 - w) for w in (0.1, 0.3, 0.5, 0.6, 0.7, 0.9)]
    study = previewed_study([(1.0, 0.0), *inside, (0.0, 1.0)])
    study.add_trial(create_trial(state=TrialState.PRUNED, intermediate_values={0: 1.0}))
    found = study_calibration(study, ["a", "b"])
    assert [(name, c.count) for name, c in found.items()] == [("score", 6), ("a", 6), ("b", 6)]
    assert found.score.verdict == found.tasks["a"].verdict == "previews rank weights"
    assert found.tasks["b"].verdict == "previews mislead"
    assert found.tasks["a"].bias is not None
    assert found.tasks["a"].bias.value == pytest.approx(0.1)


def test_the_table_says_what_the_numbers_say() -> None:
    study = previewed_study([(w, 1 - w) for w in (0.1, 0.3, 0.5, 0.6, 0.7, 0.9)])
    found = study_calibration(study, ["a", "b"]).as_json()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    text = format_calibration(found)
    assert "a: previews rank weights" in text
    assert "b: the previews order weights the wrong way round" in text
    assert "+0.1000" in text
    empty = study_calibration(optuna.create_study(), []).as_json()
    assert "0 truths, too few truths" in format_calibration(empty)


def test_several_objectives_are_judged_each_in_its_direction() -> None:
    """Task a is maximised and its previews are true; task b is minimised, they mislead."""
    study = optuna.create_study(directions=["maximize", "minimize"])
    for i in range(1, 9):
        w = i / 10
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE,
                values=[w, w],
                params={"w_a": w, "w_b": 1 - w},
                distributions=dict.fromkeys(("w_a", "w_b"), FloatDistribution(0, 1)),
                user_attrs={"preview_a": w, "truth_a": w, "preview_b": -w, "truth_b": w},
            )
        )
    found = study_calibration(study, ["a", "b"])
    assert found.score is None
    assert [name for name, _ in found.items()] == ["a", "b"]
    assert found.tasks["a"].verdict == "previews rank weights"
    assert found.tasks["b"].verdict == "previews mislead"
    assert found.tasks["b"].argmax_regret == pytest.approx(0.7), "the smallest preview is at .8"
    as_json = found.as_json()
    assert json.loads(json.dumps(as_json)) == as_json
    assert as_json["score"] is None
    text = format_calibration(as_json)
    assert "score" not in text
    assert "a: previews rank weights" in text
