"""The curvature of one task at the parameters of its own run, in each family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from optuna_merge.definition import PosteriorSettings
from optuna_merge.models import MultitaskModel
from optuna_merge.posteriors import (
    DiagonalGaussian,
    KroneckerGaussian,
    LowRankGaussian,
    Posterior,
    kronecker_fisher,
    low_rank_fisher,
    squared_gradients,
)
from optuna_merge.tasks import Batch, Loss, Task
from optuna_merge.tasks._data import to_device, unpadded_batches


def undamped_posterior(
    model: MultitaskModel, task: Task, state: Mapping[str, Tensor], settings: PosteriorSettings
) -> Posterior:
    """The posterior of the shared parameters without the prior's share of the precision.

    Args:
        model: Is given the state, and keeps it.
        task: The task; a seeded choice of its training data is used.
        state: Shared parameters and the task's own head, of its own run.
        settings: Family, number of examples, seed.
    """
    model.load(state, source=f"the run of task {task.name!r}")
    model.prepare(task)
    loss = task.loss
    assert isinstance(loss, Loss)
    names = model.shared_names()
    mean = {name: state[name] for name in names}
    generator = torch.Generator().manual_seed(settings.seed)
    data = task.data("train")
    rows = torch.randperm(len(data), generator=generator)[: settings.examples].tolist()

    def batches() -> Iterator[Batch]:
        for batch in unpadded_batches(data, rows, settings.chunk_size):
            yield to_device(batch, model.device)

    measure, draw = loss.for_curvature or loss, loss.sample_labels
    if settings.family == "kronecker":
        factors, diagonals = kronecker_fisher(
            model,
            batches(),
            predict=lambda batch: model(batch, task.name),
            loss=measure,
            sample_labels=draw,
            generator=generator,
        )
        return KroneckerGaussian(
            mean,
            {name: factors[name] for name in names if name in factors},
            {name: diagonals[name] for name in names if name in diagonals},
        )

    def predict(parameters: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        return model.functional(parameters, batch, task.name)

    shared = model.state(names)
    if settings.family == "low_rank":
        diagonal, directions = low_rank_fisher(
            predict,
            shared,
            batches(),
            rank=settings.rank,
            loss=measure,
            sample_labels=draw,
            chunk_size=settings.chunk_size,
            generator=generator,
        )
        return LowRankGaussian(mean, diagonal, directions)
    curvature = squared_gradients(
        predict,
        shared,
        batches(),
        loss=measure,
        sample_labels=draw,
        chunk_size=settings.chunk_size,
        generator=generator,
    )
    return DiagonalGaussian(mean, curvature)
