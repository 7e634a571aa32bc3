"""The whole Fisher matrix, for toys and last layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Unpack

from torch import Tensor

from optuna_merge.posteriors._example_gradients import (
    Batch,
    Labelling,
    Predict,
    weighted_rows,
    wide,
)


def full_fisher(
    predict: Predict,
    params: Mapping[str, Tensor],
    batches: Iterable[Batch],
    *,
    chunk_size: int = 32,
    **labelling: Unpack[Labelling],
) -> Tensor:
    """The Fisher matrix of all P parameters: the data part of a `FullGaussian`'s precision.

    The mean of g g' over examples with gradients g, of which `squared_gradients` is the diagonal.

    Args:
        predict: As in `squared_gradients`.
        params: As in `squared_gradients`.
        batches: As in `squared_gradients`.
        chunk_size: As in `squared_gradients`.
        labelling: `loss`, `sample_labels`, `classes` and `generator`, as in `squared_gradients`.

    Returns:
        A matrix P x P, symmetric up to rounding, over the parameters flattened in the order of
        `params`, in fp32 (fp64 for fp64), to which the prior's precision is still to be added.

    Raises:
        ValueError: as `squared_gradients`.
    """
    reference = next(iter(params.values()))
    size = sum(tensor.numel() for tensor in params.values())
    total = reference.new_zeros(size, size, dtype=wide(reference))
    count = 0.0
    for rows, weight in weighted_rows(
        predict, params, batches, chunk_size=chunk_size, **labelling
    ):
        total.addmm_(rows.T, rows)
        count += weight
    return total.div_(count)
