"""What fraction of the previews passes each gate: by what the rungs have proved, and by cost.

The last gate's fraction is the user's. Those before it say how many previews are refined: a pure
function of the finetunes so far, so that all workers decide alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations_with_replacement
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from optuna.trial import FrozenTrial, TrialState

from optuna_merge.calibration import rank_correlation, rank_correlations
from optuna_merge.samplers._history import read_trial

Array = npt.NDArray[np.float64]
Row = tuple[float, ...]
"""Of one finetune: its preview, its refined previews by their steps, and its truth."""

ENOUGH = 8
"""Finetunes before fractions are measured; and so many more are what equal fractions weigh."""

_MAX_ROWS = 200  # the latest ones
_RESAMPLES = 500
_PARTS = 8  # a gate's fraction is the last one's to the power of 0/8, 1/8, ... or 8/8


def equal_fractions(fraction: float, gates: int) -> Row:
    """Every gate lets through the same share of what comes to it.

    As in successive halving (Jamieson and Talwalkar, arXiv 1502.07943).

    Args:
        fraction: Of the previews that pass the last gate, in [0, 1].
        gates: Number of gates.

    Returns:
        By gate, the fraction of the previews that pass it.
    """
    return tuple(fraction ** ((i + 1) / gates) for i in range(gates))


def finished_ladders(
    trials: Sequence[FrozenTrial], steps: Sequence[int], tasks: Sequence[str]
) -> tuple[Row, ...]:
    """The latest 200 finetunes that were refined at all `steps`, where no task's weight is zero.

    Of one task only there are none: its weights don't tell finetunes apart.
    """
    rows = []
    for trial in reversed(trials):
        known = trial.intermediate_values
        if trial.state != TrialState.COMPLETE or not all(s in known for s in (0, *steps)):
            continue
        record = read_trial(trial, tasks) if len(tasks) > 1 else None
        if record is None or not record.weights or min(record.weights) <= 0:
            continue
        row = (*(known[step] for step in (0, *steps)), *record.values)
        if len(row) == len(steps) + 2 and all(map(math.isfinite, row)):
            rows.append(row)
        if len(rows) == _MAX_ROWS:
            break
    return tuple(reversed(rows))


@lru_cache(maxsize=64)
def measured_fractions(fraction: float, rows: tuple[Row, ...], costs: Row) -> Row:
    """The fractions with the largest gain in truth per training step.

    What selection at all gates gains is `selection_gain` of the rank correlations in `rows`; what
    it costs is that of the refinements and finetunes of the previews that come to them. Of n rows
    the logarithms of these fractions weigh n, those of equal ones `ENOUGH`. With fewer rows than
    that, and while it is not shown that the last rung ranks truths at all (the 90% interval of its
    rank correlation with them includes zero), fractions are equal.

    Correlations are those of the previews that were promoted, the only ones with truths: selection
    makes all of them smaller than they are, that of the last rung most.

    Args:
        fraction: Of the previews that pass the last gate, in [0, 1].
        rows: From `finished_ladders`.
        costs: Training of each refinement, from the rung before it, and of a finetune, in one
            unit. As many as there are gates.

    Returns:
        By gate, the fraction of the previews that pass it; they fall, and the last is `fraction`.
    """
    equal = equal_fractions(fraction, len(costs))
    if len(rows) < ENOUGH or not 0 < fraction < 1:
        return equal
    values = np.array(rows)
    proof = rank_correlation(values[:, -2].tolist(), values[:, -1].tolist(), resamples=_RESAMPLES)
    if proof is None or proof.low <= 0:
        return equal
    correlations = rank_correlations(values)
    best: tuple[float, Row] = (-math.inf, equal)
    for parts in combinations_with_replacement(range(_PARTS + 1), len(costs) - 1):
        passing = tuple(fraction ** (part / _PARTS) for part in (*parts, _PARTS))
        spent = sum(share * cost for share, cost in zip(passing, costs))
        best = max(best, (selection_gain(correlations, passing) / spent, passing))
    trust = len(rows) / (len(rows) + ENOUGH)
    return (*(e * (b / e) ** trust for e, b in zip(equal[:-1], best[1])), fraction)


def selection_gain(correlations: Array, passing: Sequence[float]) -> float:
    """Mean truth of what passes all gates, in standard deviations above that of all previews.

    Each gate keeps the largest of a normal variable; those after it keep the correlations that
    selection leaves (Cochran, Improvement by means of selection, 1951), and are taken to be normal
    again.

    Args:
        correlations: Of the previews, refined previews and the truth, in this order,
            `(k + 2) x (k + 2)` for k refinements.
        passing: By gate, the fraction of the previews that pass it; k + 1 numbers that fall.
    """
    normal = NormalDist()
    covariance = np.array(correlations, dtype=float)
    gain, before = 0.0, 1.0
    for gate, fraction in enumerate(passing):
        share, before = fraction / before, fraction
        variance = covariance[gate, gate]
        if share >= 1 or variance <= 0:  # all pass, or what is left looks alike
            continue
        cut = normal.inv_cdf(1 - share)
        intensity = normal.pdf(cut) / share
        gain += intensity * covariance[gate, -1] / math.sqrt(variance)
        row = covariance[gate] / variance
        covariance -= intensity * (intensity - cut) * variance * np.outer(row, row)
    return gain
