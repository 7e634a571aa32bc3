"""A family as settings name it: what it is made from, and what it may be used for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from optuna_merge.posteriors._example_gradients import Batch, Labelling, Predict
from optuna_merge.posteriors._gaussian import Gaussian


@dataclass(frozen=True)
class Evidence:
    """What curvature is estimated from: a model with the parameters of a task's own run, and data.

    Attributes:
        mean: The merged parameters, as the posterior is to have them.
        parameters: The same on the model's device.
        batches: Examples, read once.
        predict: Parameters and a batch to outputs.
        model: The model, for estimates that watch its modules.
        call: A batch to outputs, by calling the model.
        chunk_size: Per-example gradients held at once.
        labelling: The loss and the labels.
    """

    mean: dict[str, Tensor]
    parameters: Mapping[str, Tensor]
    batches: Iterable[Batch]
    predict: Predict
    model: nn.Module
    call: Callable[[Batch], Tensor]
    chunk_size: int
    labelling: Labelling

    def by_gradients(self, estimator: Callable[..., Any], **settings: Any) -> Any:
        """What an estimator that takes per-example gradients gives."""
        return estimator(
            self.predict,
            self.parameters,
            self.batches,
            chunk_size=self.chunk_size,
            **self.labelling,
            **settings,
        )


@dataclass(frozen=True)
class Curvature:
    """An estimate that is kept in a file of its own; several families may be made from one.

    Attributes:
        name: Part of the file's key.
        estimate: `Evidence`, and the settings that it reads as keywords, to a posterior without
            the prior's share of the precision.
        reads: Names of these settings.
        estimators: Estimators that give it; "ivon" gives one number per parameter.
    """

    name: str
    estimate: Callable[..., Gaussian]
    reads: tuple[str, ...] = ()
    estimators: tuple[str, ...] = ("squared_gradients",)


@dataclass(frozen=True)
class Family:
    """One way to describe a task's posterior, as `PosteriorSettings` name it.

    Attributes:
        name: Its name in settings.
        summary: What it is, for the documentation.
        gaussian: The class of its posteriors.
        curvature: What they are made from; None if the mean is all.
        made: Makes one, of what the curvature's estimate gives, or of the mean.
        check_size: Takes the number of merged parameters; ValueError if they are too many.
    """

    name: str
    summary: str
    gaussian: type[Gaussian]
    curvature: Curvature | None
    made: Callable[[Any], Gaussian] = lambda estimated: estimated
    check_size: Callable[[int], None] = lambda parameters: None
