"""What a metric is, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Measurement:
    """A value and its standard error over examples (NaN where it isn't known)."""

    value: float
    standard_error: float


class ModelMeasure(Protocol):
    """Measures a whole network, on data of its own."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits, of "validation" and "test", that it has data for."""
        ...

    def describe(self) -> Any:
        """What must be the same on all workers, as JSON values: names, and hashes of the data."""
        ...

    def __call__(self, network: Any, split: str) -> Measurement:
        """Its value for the network, in evaluation mode and on the device where it is."""
        ...


def _as_they_are(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return outputs, labels


@dataclass(frozen=True)
class Metric:
    """A metric of a whole data set.

    Each batch of outputs and labels is condensed to the little that the metric needs of every
    example (a predicted class, not its logits), and the metric is a function of that, over all
    examples.

    Attributes:
        name: Stands in the study's definition and in tables.
        function: `(outputs, labels) -> Measurement` over all examples, on the CPU; what it gets
            is what `condense` made of the batches, concatenated.
        greater_is_better: Decides the direction of the study.
        condense: `(outputs, labels) -> (outputs, labels)` of a batch, on the model's device: two
            tensors with a row per example, whose further dimensions are the same in every batch.
            Needed where batches differ in length, as those of tokens do; default: as they are.
        generated: The outputs wanted are token ids that the model generates, (batch, tokens),
            not what it predicts in one forward pass.
        of_model: Takes the place of `function`; see `lm_eval_metric`.
    """

    name: str
    function: Callable[[Tensor, Tensor], Measurement]
    greater_is_better: bool = True
    condense: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = _as_they_are
    generated: bool = False
    of_model: ModelMeasure | None = None

    @property
    def in_one_pass(self) -> bool:
        """Whether the outputs of one forward pass are all that it needs."""
        return not self.generated and self.of_model is None

    def describe(self) -> Any:
        """How it stands in the study's definition: its name, and what else makes it."""
        if self.of_model is None:
            return self.name
        return {"name": self.name, "of_model": self.of_model.describe()}

    def __call__(self, outputs: Tensor, labels: Tensor) -> Measurement:
        return self.function(*self.condense(outputs, labels))
