"""The whole precision matrix, for toys and last layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from optuna_merge.posteriors._parts import Part, mean_parts


@dataclass(frozen=True, eq=False)
class FullGaussian:
    """N(mean, precision^-1).

    Args:
        mean: Tensors by name, P numbers in all.
        precision: One symmetric matrix P x P over the tensors flattened in the mean's order: the
            averaged loss's Hessian plus the prior's precision, once.
    """

    mean: dict[str, Tensor]
    precision: Tensor

    def parts(self) -> Iterator[Part]:
        """What is stored, for checks."""
        yield from mean_parts(self.mean)
        total = sum(mean.numel() for mean in self.mean.values())
        yield Part("precision", "", self.precision, shape=(total, total))
