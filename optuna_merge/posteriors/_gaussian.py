"""The elementwise families: what is stored of one task's posterior, as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from optuna_merge.posteriors._parts import Part, mean_parts


@dataclass(frozen=True, eq=False)
class IsotropicGaussian:
    """N(mean, I / precision), with one precision in all or one per tensor.

    Equal precisions for all tasks and the prior give simple averaging and task arithmetic;
    learned ones give a scalar-weighted mean. Source: arXiv 2412.08147.

    Args:
        mean: Tensors by name, the task's parameters.
        precision: A number or 0-d tensor, or a dict of one per tensor: the averaged loss's
            curvature plus the prior's precision, once. The default 1 is for averaging.
    """

    mean: dict[str, Tensor]
    precision: float | Tensor | dict[str, float | Tensor] = 1.0

    def scalar(self, name: str) -> float:
        """The precision of the tensor `name`."""
        precision = self.precision
        return float(precision[name] if isinstance(precision, dict) else precision)

    def parts(self) -> Iterator[Part]:
        """What is stored, for checks."""
        yield from mean_parts(self.mean)
        scalars = self.precision if isinstance(self.precision, dict) else {"": self.precision}
        for name, scalar in scalars.items():
            yield Part("precision", name, scalar, shape=(), nonnegative=True)


@dataclass(frozen=True, eq=False)
class DiagonalGaussian:
    """N(mean, diag(precision)^-1), for Fisher- or Hessian-weighted merging.

    Source: arXiv 2111.09832, arXiv 2412.08147.

    Args:
        mean: Tensors by name, the task's parameters.
        precision: Tensors of the same names and shapes: the diagonal of the averaged loss's
            Hessian plus the prior's precision, once. The dtype may be wider than the mean's.
    """

    mean: dict[str, Tensor]
    precision: dict[str, Tensor]

    def __post_init__(self) -> None:
        if not isinstance(self.precision, dict):
            raise TypeError(
                f"precision must be a dict of tensors, got {type(self.precision).__name__}; "
                f"for one number use IsotropicGaussian"
            )

    def parts(self) -> Iterator[Part]:
        """What is stored, for checks."""
        yield from mean_parts(self.mean)
        for name, precision in self.precision.items():
            shape = tuple(self.mean[name].shape)
            yield Part("precision", name, precision, shape=shape, nonnegative=True)
