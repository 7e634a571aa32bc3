"""Several runs of one task as a mixture of Gaussians."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from optuna_merge.posteriors._gaussian import Coupling, Gaussian, Part

Responsibilities = Literal["task", "layer", "coordinate", "fixed"]
RESPONSIBILITIES: dict[str, tuple[Coupling, ...]] = {
    "task": ("none", "tensor", "whole"),
    "layer": ("none", "tensor"),
    "coordinate": ("none",),
    "fixed": ("none", "tensor", "whole"),
}
"""How mixtures may be merged, and what the precision of their components may couple."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """q = sum_k exp(log_weights_k) N(mean_k, precision_k^-1), merged by expectation maximisation.

    Args:
        components: K Gaussians of one family, for instance of K seeds.
        log_weights: K log probabilities; they are normalised when merging.
        responsibilities: What one responsibility stands for. "task" is the mixture as written:
            one per component, which in large networks is nearly always 0 or 1, so that one run
            is selected. "layer" takes q to be a product of mixtures over modules (tensors that
            share a name up to the last dot), "coordinate" over single parameters (elementwise
            families only). "fixed" keeps them at the mixture's weights: the precision-weighted
            mean of all runs.
    """

    components: Sequence[Gaussian]
    log_weights: Tensor
    responsibilities: Responsibilities = "task"

    @property
    def mean(self) -> dict[str, Tensor]:
        """The first component's mean: the names, shapes and dtypes of all."""
        return self.components[0].mean

    def parts(self) -> Iterator[Part]:
        """What is stored, for checks."""
        yield Part("log_weights", "", self.log_weights, shape=(len(self.components),))
        for k, component in enumerate(self.components):
            for part in component.parts():
                yield part._replace(role=f"component {k}'s {part.role}")

    def damped(self, delta: float) -> Mixture:
        """The same with `delta` added to each component's precision."""
        return replace(self, components=[each.damped(delta) for each in self.components])

    def mean_curvature(self) -> float:
        """Mean of the components'."""
        return sum(each.mean_curvature() for each in self.components) / len(self.components)
