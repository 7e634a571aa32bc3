"""The curvature of one task at the parameters of its own run, in each family."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from optuna_merge.exceptions import NotFiniteError
from optuna_merge.models import MultitaskModel
from optuna_merge.posteriors import Curvature, Evidence, Gaussian, Posterior, PosteriorSettings
from optuna_merge.tasks import Batch, Loss, Task, to_device, unpadded_batches


def estimate(
    curvature: Curvature,
    model: MultitaskModel,
    task: Task,
    state: Mapping[str, Tensor],
    settings: PosteriorSettings,
) -> Gaussian:
    """The undamped posterior of the shared parameters at the state of a task's own run."""
    model.load(state, source=f"the run of task {task.name!r}")
    model.prepare(task)
    loss = task.loss
    assert isinstance(loss, Loss)
    names = model.shared_names()
    generator = torch.Generator().manual_seed(settings.seed)
    data = task.data("train")
    rows = torch.randperm(len(data), generator=generator)[: settings.examples].tolist()

    def batches() -> Iterator[Batch]:
        for batch in unpadded_batches(data, rows, settings.chunk_size):
            yield to_device(batch, model.device)

    def predict(parameters: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        return model.functional(parameters, batch, task.name)

    evidence = Evidence(
        {name: state[name] for name in names},
        model.state(names),
        batches(),
        predict,
        model,
        lambda batch: model(batch, task.name),
        settings.chunk_size,
        {
            "loss": loss.for_curvature or loss,
            "sample_labels": loss.sample_labels,
            "generator": generator,
        },
    )
    return curvature.estimate(evidence, **{n: getattr(settings, n) for n in curvature.reads})


def check_curvature(task: str, undamped: Posterior) -> None:
    """See that the curvature of a task's own finetune is finite."""
    mean = undamped.mean_curvature()  # of squares: one that is not finite makes it so
    if not math.isfinite(mean):
        raise NotFiniteError(
            f"task {task!r}: the curvature at the end of its own finetune is {mean:g} in the "
            f"mean; expected a finite number. Is there a gradient without a value, as that of a "
            f"root or a norm at 0, or does the loss overflow? A lower learning rate may help, or "
            f"the isotropic family, which needs no curvature"
        )
