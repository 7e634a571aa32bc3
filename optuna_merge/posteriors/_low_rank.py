"""A diagonal plus a low-rank part: the strongest directions of curvature, kept as they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from optuna_merge.posteriors._parts import Part, mean_parts


@dataclass(frozen=True, eq=False)
class LowRankGaussian:
    """N(mean, (diag(d) + U U')^-1), with U of shape P x r over all P parameters.

    Args:
        mean: Tensors by name.
        diagonal: Tensors of the same names and shapes, positive; they include the prior's
            precision once.
        factors: The columns of U, cut along the tensors: for each name a tensor of the mean's
            shape with one more dimension, of length r, at the end; or one matrix P x r over the
            tensors flattened in the mean's order. The data part of the averaged loss.
    """

    mean: dict[str, Tensor]
    diagonal: dict[str, Tensor]
    factors: dict[str, Tensor] | Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.diagonal, dict):
            raise TypeError(
                f"diagonal must be a dict of tensors, got {type(self.diagonal).__name__}"
            )

    def rows(self) -> dict[str, Tensor]:
        """For each name the rows of U that belong to it, (elements, r)."""
        if isinstance(self.factors, dict):
            return {
                name: self.factors[name].reshape(mean.numel(), -1)
                for name, mean in self.mean.items()
            }
        sizes = [mean.numel() for mean in self.mean.values()]
        return dict(zip(self.mean, self.factors.split_with_sizes(sizes)))

    def parts(self) -> Iterator[Part]:
        """What is stored, for checks."""
        yield from mean_parts(self.mean)
        for name, diagonal in self.diagonal.items():
            shape = tuple(self.mean[name].shape)
            yield Part("diagonal", name, diagonal, shape=shape, nonnegative=True)
        if isinstance(self.factors, Tensor):
            total = sum(mean.numel() for mean in self.mean.values())
            yield Part("factors", "", self.factors, shape=(total, *self.factors.shape[1:][:1]))
            return
        rank = next(iter(self.factors.values())).shape[-1:]
        for name, factor in self.factors.items():
            yield Part("factors", name, factor, shape=(*self.mean[name].shape, *rank))
