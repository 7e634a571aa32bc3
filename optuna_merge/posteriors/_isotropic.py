"""One precision in all, or one per tensor: averaging, with whole tensors weighted at most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from optuna_merge.posteriors._family import Family
from optuna_merge.posteriors._gaussian import Gaussian, Part


@dataclass(frozen=True, eq=False)
class IsotropicGaussian(Gaussian):
    """N(mean, I / precision), with one precision in all or one per tensor.

    Equal precisions for all tasks and the prior give simple averaging and task arithmetic;
    learned ones give a scalar-weighted mean. Source: arXiv 2412.08147.

    Args:
        mean: Tensors by name, the task's parameters.
        precision: A number or 0-d tensor, or a dict of one per tensor: the averaged loss's
            curvature plus the prior's precision, once. The default 1 is for averaging.
    """

    precision: float | Tensor | dict[str, float | Tensor] = 1.0

    def parts(self) -> Iterator[Part]:
        yield from super().parts()
        scalars = self.precision if isinstance(self.precision, dict) else {"": self.precision}
        for name, scalar in scalars.items():
            yield Part("precision", name, scalar, shape=(), nonnegative=True)

    def elementwise(self, name: str) -> float:
        precision = self.precision
        return float(precision[name] if isinstance(precision, dict) else precision)

    def trace(self) -> float:
        return sum(self.elementwise(n) * t.numel() for n, t in self.mean.items())

    def damped(self, delta: float) -> Self:
        if isinstance(self.precision, dict):
            scalars = {name: value + delta for name, value in self.precision.items()}
            return replace(self, precision=scalars)
        return replace(self, precision=self.precision + delta)


ISOTROPIC = Family(
    "isotropic",
    "the merge is the weighted mean of the parameters",
    IsotropicGaussian,
    curvature=None,
    made=IsotropicGaussian,
)
