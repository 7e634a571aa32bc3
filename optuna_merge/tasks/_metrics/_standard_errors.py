"""Values with standard errors over examples: of means, ratios, smooth functions, anything."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from optuna_merge.tasks._metrics._metric import Measurement


def delta_measurement(value: float, influence: Tensor) -> Measurement:
    """A smooth function of means over n examples, with its standard error by the delta method.

    The standard error is s / sqrt(n), with s the standard deviation (n - 1) of the examples'
    influences, shape (n,), up to a constant: the derivative of the value by the example's share of
    the data (Efron, The Jackknife, the Bootstrap and Other Resampling Plans, 1982, chapter 6). NaN
    for fewer than two examples.
    """
    count = len(influence)
    if count < 2:
        return Measurement(value, math.nan)
    return Measurement(value, float(influence.double().std(unbiased=True)) / math.sqrt(count))


def mean_measurement(values: Tensor) -> Measurement:
    """Mean of per-example values (shape (n,)) with its standard error s / sqrt(n)."""
    values = values.double()
    return delta_measurement(float(values.mean()), values)


def ratio_measurement(numerators: Tensor, denominators: Tensor) -> Measurement:
    """Ratio R of the sums of a_i and b_i over examples, such as a mean over all tokens.

    An example's influence is (a_i - R b_i) / mean(b), so tokens of one example may depend on one
    another (Cochran, Sampling Techniques, 1977, section 2.11).
    """
    numerators, denominators = numerators.double(), denominators.double()
    ratio = numerators.sum() / denominators.sum()
    influence = (numerators - ratio * denominators) / denominators.mean()
    return delta_measurement(float(ratio), influence)


def jackknife_measurement(
    statistic: Callable[[list[int]], float], count: int, groups: int
) -> Measurement:
    """Any statistic of n examples, with its standard error by the delete-a-group jackknife.

    The examples fall at random (always the same way) into G groups of about one size, and with
    v_g the statistic of the examples outside group g,
    SE^2 = (G - 1) / G sum_g (v_g - mean(v))^2 (Kott, The Delete-a-Group Jackknife, Journal of
    Official Statistics 17, 2001). It is itself uncertain by about 1 / sqrt(2 (G - 1)): 16 % with
    20 groups. NaN for fewer than two groups or examples. `statistic` takes ascending indices.
    """
    value = statistic(list(range(count)))
    groups = min(groups, count)
    if groups < 2:
        return Measurement(value, math.nan)
    # Evaluation sorts examples by length, so neighbours must not make a group.
    group = torch.randperm(count, generator=torch.Generator().manual_seed(0)) % groups
    without = torch.tensor(
        [statistic((group != g).nonzero().flatten().tolist()) for g in range(groups)],
        dtype=torch.float64,
    )
    return Measurement(value, float(without.std(unbiased=False)) * math.sqrt(groups - 1))
