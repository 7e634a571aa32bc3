"""The Fisher matrix's strongest directions, from a stream of per-example gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Unpack

import torch
from torch import Tensor

from optuna_merge.posteriors._example_gradients import (
    Batch,
    Labelling,
    Predict,
    weighted_rows,
    wide,
)


def low_rank_fisher(
    predict: Predict,
    params: Mapping[str, Tensor],
    batches: Iterable[Batch],
    *,
    rank: int,
    chunk_size: int = 32,
    **labelling: Unpack[Labelling],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Diagonal and factors of a `LowRankGaussian`: F close to diag(d) + U U', diagonals equal.

    A sketch of `rank` directions is held; each chunk of gradients is added to it and the sketch
    cut back to its leading singular directions. What is cut stays in the diagonal. With no more
    examples than `rank` it is exact.

    Args:
        predict: As in `squared_gradients`.
        params: As in `squared_gradients`.
        batches: As in `squared_gradients`.
        rank: Columns of U.
        chunk_size: Memory is this plus `rank`, times the parameters.
        labelling: `loss`, `sample_labels`, `classes` and `generator`, as in `squared_gradients`.

    Returns:
        The diagonal d >= 0 of the data part, to which the prior's precision is still to be added,
        and U as tensors of the parameters' shapes with a last dimension of length `rank`.

    Raises:
        ValueError: as `squared_gradients`, or a rank below 1.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}; expected at least 1")
    sizes = [tensor.numel() for tensor in params.values()]
    reference = next(iter(params.values()))
    sketch = reference.new_zeros(0, sum(sizes), dtype=wide(reference))
    squares = reference.new_zeros(sum(sizes), dtype=wide(reference))
    count = 0.0
    pending: list[Tensor] = []
    held = 0
    for rows, weight in weighted_rows(
        predict, params, batches, chunk_size=chunk_size, **labelling
    ):
        squares += rows.square().sum(0)
        count += weight
        pending.append(rows)
        held += len(rows)
        if held >= chunk_size:
            sketch = _cut(torch.cat([sketch, *pending]), rank)
            pending, held = [], 0
    sketch = _cut(torch.cat([sketch, *pending]), rank) / count**0.5
    diagonal = (squares / count - sketch.square().sum(0)).clamp(min=0)
    padded = torch.cat([sketch, sketch.new_zeros(rank - len(sketch), sketch.shape[1])])
    return (
        {
            name: piece.view(tensor.shape)
            for (name, tensor), piece in zip(params.items(), diagonal.split_with_sizes(sizes))
        },
        {
            name: piece.T.reshape(*tensor.shape, rank)
            for (name, tensor), piece in zip(params.items(), padded.split_with_sizes(sizes, 1))
        },
    )


def _cut(rows: Tensor, rank: int) -> Tensor:
    """At most `rank` orthogonal rows with nearly the same sum of outer products."""
    if len(rows) <= rank:
        return rows
    _, vectors = torch.linalg.eigh(rows.double() @ rows.double().T)
    leading: Tensor = vectors[:, -rank:].to(rows.dtype)
    return leading.T @ rows
