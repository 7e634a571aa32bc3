"""What pairs of previews and truths say about the previews."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from optuna_merge.calibration._estimates import (
    LEVEL,
    MIN_TRUTHS,
    RESAMPLES,
    Array,
    Estimate,
    bias,
    bootstrap_counts,
    estimate,
    kendall,
    paired,
    slope,
    spearman,
)

Verdict = Literal[
    "previews rank weights", "no evidence of correlation", "previews mislead", "too few truths"
]
"""What the interval of the rank correlation says: above zero, around it, below it, or none yet."""


@dataclass(frozen=True)
class Calibration:
    """How previews of one quantity relate to its truths. Statistics are None where undefined.

    Attributes:
        count: Number of pairs.
        verdict: By the interval of `spearman`: all above zero, around zero, all below zero; or
            too few truths (fewer than `MIN_TRUTHS`, or all alike).
        bias: Mean of truth minus preview, in the quantity's unit.
        slope: Least-squares slope of the truths over the previews; below 1 where the previews
            exaggerate differences.
        spearman: Rank correlation, in [-1, 1].
        kendall: Tau-b, in [-1, 1].
        top_quartile: Share of the best quarter of the truths that is in the best quarter of the
            previews; about 1/4 by chance.
        argmax_regret: What is lost by taking the best preview's weights: the best truth against
            the truth there, at least 0, in the quantity's unit.
        offset: Of the least-squares line: truth = offset + slope preview.
    """

    count: int
    verdict: Verdict
    bias: Estimate | None
    slope: Estimate | None
    spearman: Estimate | None
    kendall: Estimate | None
    top_quartile: float | None
    argmax_regret: float | None
    offset: float | None = None

    @property
    def warning(self) -> str | None:
        """What the verdict means for a search; None when the previews rank the weights."""
        if self.verdict == "too few truths":
            noun = "truth" if self.count == 1 else "truths"
            return (
                f"{self.count} {noun}, too few truths to judge the previews by (fewer than "
                f"{MIN_TRUTHS}, or all alike)"
            )
        if self.verdict == "previews rank weights":
            return None
        assert self.spearman is not None
        interval = f"{self.spearman.low:.2f} to {self.spearman.high:.2f}"
        if self.verdict == "previews mislead":
            return (
                f"the previews order weights the wrong way round (rank correlation {interval}); "
                f"take another posterior family before trusting this study's previews"
            )
        return (
            f"no evidence that the previews tell good weights from bad ones (rank correlation "
            f"{interval}); another posterior family, more examples for the posteriors or more "
            f"truths may help, or the weights hardly matter"
        )


def calibrate(
    previews: Sequence[float], truths: Sequence[float], *, maximize: bool = True
) -> Calibration:
    """Judge previews by the truths at the same weights. A pure function.

    Args:
        previews: Preview values.
        truths: Truths in the same order.
        maximize: Whether larger is better.

    Raises:
        ValueError: sequences of different lengths, or a value that is not finite.
    """
    x, y = paired(previews, truths)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("previews and truths must be finite; leave out pairs with NaN")
    n = len(x)
    if n < MIN_TRUTHS:
        return Calibration(n, "too few truths", None, None, None, None, None, None)
    counts = bootstrap_counts(n, RESAMPLES, 0)
    shift, gain, rho, tau = (
        estimate(statistic, x, y, counts, LEVEL) for statistic in (bias, slope, spearman, kendall)
    )
    sign = 1.0 if maximize else -1.0
    return Calibration(
        count=n,
        verdict=_verdict(rho),
        bias=shift,
        slope=gain,
        spearman=rho,
        kendall=tau,
        top_quartile=_top_quartile(sign * x, sign * y),
        argmax_regret=float((sign * y).max() - (sign * y)[np.argmax(sign * x)]),
        offset=None if gain is None else float(y.mean() - gain.value * x.mean()),
    )


def _verdict(correlation: Estimate | None) -> Verdict:
    if correlation is None:
        return "too few truths"
    if correlation.low > 0:
        return "previews rank weights"
    return "previews mislead" if correlation.high < 0 else "no evidence of correlation"


def _top_quartile(x: Array, y: Array) -> float:
    """Larger is better; of ties the earlier pairs are taken."""
    k = math.ceil(len(x) / 4)
    top_x, top_y = (set(np.argsort(-v, kind="stable")[:k].tolist()) for v in (x, y))
    return len(top_x & top_y) / k
