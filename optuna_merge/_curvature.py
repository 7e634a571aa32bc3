"""The curvature of one task at the parameters of its own run, in each family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from optuna_merge.definition import PosteriorSettings
from optuna_merge.models import MultitaskModel
from optuna_merge.posteriors import (
    DiagonalGaussian,
    FullGaussian,
    KroneckerGaussian,
    LowRankGaussian,
    Posterior,
    categorical_labels,
    full_fisher,
    kronecker_fisher,
    low_rank_fisher,
    squared_gradients,
)
from optuna_merge.posteriors._example_gradients import Labelling
from optuna_merge.tasks import Batch, Loss, Task, to_device, unpadded_batches


def undamped_posterior(
    model: MultitaskModel, task: Task, state: Mapping[str, Tensor], settings: PosteriorSettings
) -> Posterior:
    """The posterior of the shared parameters without the prior's share of the precision.

    Args:
        model: Is given the state, and keeps it.
        task: The task; a seeded choice of its training data is used.
        state: Shared parameters and the task's own head, of its own run.
        settings: Family, number of examples and of labels, seed. "per_tensor" is made from the
            diagonal, which is returned.
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

    classes = _summed_labels(task.num_outputs, loss, settings.exact_labels)
    labelling: Labelling = {
        "loss": loss.for_curvature or loss,
        "sample_labels": None if classes else loss.sample_labels,
        "classes": classes,
        "generator": generator,
    }
    if settings.family == "kronecker":
        factors, diagonals = kronecker_fisher(
            model, batches(), predict=lambda batch: model(batch, task.name), **labelling
        )
        return KroneckerGaussian(
            mean,
            {name: factors[name] for name in names if name in factors},
            {name: diagonals[name] for name in names if name in diagonals},
        )

    def predict(parameters: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        return model.functional(parameters, batch, task.name)

    where = (predict, model.state(names), batches())
    chunk_size = settings.chunk_size
    if settings.family == "full":
        return FullGaussian(mean, full_fisher(*where, chunk_size=chunk_size, **labelling))
    if settings.family == "low_rank":
        diagonal, directions = low_rank_fisher(
            *where, rank=settings.rank, chunk_size=chunk_size, **labelling
        )
        return LowRankGaussian(mean, diagonal, directions)
    return DiagonalGaussian(mean, squared_gradients(*where, chunk_size=chunk_size, **labelling))


def _summed_labels(outputs: int, loss: Loss, most: int) -> int | None:
    """The number of classes if the labels are to be summed over, else None."""
    known = loss.classification and loss.sample_labels is categorical_labels
    return outputs if known and outputs <= most else None
