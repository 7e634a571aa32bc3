"""What the best weights gain over uniform ones, less what is only luck of having been chosen.

The best of n noisy truths looks better than it is. Here the truths are taken to be draws from one
normal distribution of unknown mean and spread, each seen with the noise of its finetunes, and all
are drawn towards that mean by as much as the noise makes up of what they differ by:

    E[θ_i] = μ + τ² / (τ² + σ² / r_i) (y_i - μ)

with y_i the mean of r_i finetunes, σ the noise of one, τ the spread. τ is not fixed: it is
averaged over by its posterior. Such estimates need no correction for the choice of the best. This
is the normal hierarchical model of Rubin (1981, "Estimation in parallel randomized experiments";
Gelman et al., Bayesian Data Analysis, section 5.4), an empirical Bayes form of James and Stein's
shrinkage (Efron and Morris 1973), with the half-Cauchy prior of Gelman (2006) on τ / σ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from optuna_merge.calibration._noise import Noise
from optuna_merge.trials import SCORE, Findings

Array = npt.NDArray[np.float64]

EVIDENT = 0.9
"""The probability from which on a gain is reported as one."""

_SPREADS = np.concatenate([[0.0], np.geomspace(0.03, 100.0, 60)])
"""Values of τ / σ, the first for all that is smaller."""
_FACTORS = np.geomspace(0.25, 4.0, 17)
"""Of the noise as it is estimated: what it may be."""
_TINY = 1e-300
_OUTLYING = 3.0  # robust standard deviations below the median


@dataclass(frozen=True)
class GainEstimate:
    """How much the best weights are better than uniform ones; positive is better.

    Attributes:
        seen: By the truths as they are, the means of repeats.
        expected: Shrunken for the noise and the choice, see the module.
        standard_error: Of `expected`.
        chance: Probability that there is a gain.
        count: Of how many weightings the best is the best.
    """

    seen: float
    expected: float
    standard_error: float
    chance: float
    count: int

    @property
    def is_evident(self) -> bool:
        """Whether a gain is as good as sure: at nine to one."""
        return self.chance >= EVIDENT


def estimated_gain(findings: Findings, noise: Noise | None) -> GainEstimate | None:
    """The gain of the best weights over uniform ones; None if a truth or the noise is unknown.

    If uniform weights are the best, it is that of the best of the others. The tasks alone are
    candidates only where one of them is the best.

    Args:
        findings: What the study's trials say.
        noise: Of one finetune's score, from `finetune_noise`.
    """
    uniform = findings.uniform
    if findings.several or uniform is None or noise is None or not noise.std:
        return None
    sign, theirs, chosen = findings.sign(SCORE), findings.repeats(uniform), findings.best
    mine = theirs.mean(SCORE)
    others = [
        (all(o.feasible for o in of.finetunes), sign * mean, len(of.values(SCORE)))
        for of in findings.weightings
        if of is not theirs
        and (max(of.first.weights.values()) < 1 or of.first is chosen)
        and (mean := of.mean(SCORE)) is not None
    ]
    able = [i for i, (feasible, _, _) in enumerate(others) if feasible]
    if not able or mine is None:
        return None
    best = others.pop(max(able, key=lambda i: others[i][1]))
    values = [best[1], sign * mine, *(mean for _, mean, _ in others)]
    counts = [best[2], len(theirs.values(SCORE)), *(n for _, _, n in others)]
    found = shrunken_difference(values, counts, noise.std, noise.freedom)
    return GainEstimate(values[0] - values[1], *found, len(values))


def shrunken_difference(
    values: Sequence[float] | Array, counts: Sequence[float] | Array, noise: float, freedom: float
) -> tuple[float, float, float]:
    """The expected difference of the first two means, its standard error, P(it is positive).

    Values far below the others count as if they were only three robust standard deviations below
    the median: bad weights say little of how much good ones differ.

    Args:
        values: Means of truths, larger is better.
        counts: How many finetunes each is the mean of.
        noise: Standard deviation of one, as it is estimated.
        freedom: With how many degrees of freedom.
    """
    y = np.array(values, dtype=float)
    middle = np.median(y)
    spread = max(1.4826 * float(np.median(np.abs(y - middle))), noise)
    y = np.maximum(y, middle - _OUTLYING * spread)
    factors, spreads = (a.reshape(-1, 1) for a in np.meshgrid(_FACTORS, _SPREADS, indexing="ij"))
    v = np.square(noise * factors) / np.array(counts, dtype=float)
    squares = np.square(noise * factors * spreads)
    precision = 1 / (v + squares)
    total = precision.sum(axis=1)
    mean = (precision * y).sum(axis=1) / total
    log_posterior = 0.5 * np.log(precision).sum(axis=1) - 0.5 * np.log(total)
    log_posterior -= 0.5 * (precision * np.square(y - mean[:, None])).sum(axis=1)
    # Scaled inverse chi-squared of the noise, by factors that are evenly spaced in logarithm, and
    # half-Cauchy of the spread, by the width of each step of the grid.
    of_noise = -freedom * np.log(_FACTORS) - 0.5 * freedom / np.square(_FACTORS)
    of_spread = np.log(np.gradient(_SPREADS)) - np.log1p(np.square(_SPREADS))
    log_posterior += (of_noise[:, None] + of_spread).ravel()
    share = np.exp(log_posterior - log_posterior.max())
    share /= share.sum()
    kept = squares * precision
    gain = kept[:, 0] * (y[0] - mean) - kept[:, 1] * (y[1] - mean)
    variance = kept[:, 0] * v[:, 0] + kept[:, 1] * v[:, 1]
    variance = variance + np.square(kept[:, 0] - kept[:, 1]) / total
    expected = float(share @ gain)
    error = math.sqrt(float(share @ (variance + np.square(gain - expected))))
    return expected, error, float(share @ ndtr(gain / np.sqrt(np.maximum(variance, _TINY))))
