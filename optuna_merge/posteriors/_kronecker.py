"""One Kronecker product per layer: K-FAC, and RegMean as its special case."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from optuna_merge.posteriors._parts import Part, mean_parts


@dataclass(frozen=True, eq=False)
class KroneckerGaussian:
    """For each matrix W (out x in) of the mean, the precision X -> G X A + damping X.

    With G the identity this is RegMean with weights (arXiv 2212.09849), merged in closed form;
    with both factors it is K-FAC (arXiv 1503.05671).

    Args:
        mean: Tensors by name. A tensor of more than two dimensions counts as a matrix of its first
            dimension by all others, one of a single dimension as a column.
        factors: For each name of a matrix the pair (A, G): A symmetric, in x in, the mean of
            a a' over a layer's inputs; G symmetric, out x out, the mean of g g' over the gradients
            at its outputs; None stands for the identity.
        precision: Elementwise precisions, the prior included, of the tensors without factors;
            those that are in neither have the precision `damping`.
        damping: The prior's precision, included once, on the scale of the averaged loss.
    """

    mean: dict[str, Tensor]
    factors: dict[str, tuple[Tensor | None, Tensor | None]]
    precision: dict[str, Tensor] = field(default_factory=dict)
    damping: float = 0.0

    def __post_init__(self) -> None:
        if both := sorted(self.precision.keys() & self.factors.keys()):
            raise ValueError(
                f"{both[0]!r} has factors and an elementwise precision; the prior's precision "
                f"belongs into damping"
            )

    def parts(self) -> Iterator[Part]:
        """What is stored, for checks."""
        yield from mean_parts(self.mean)
        yield Part("damping", "", self.damping, shape=(), nonnegative=True)
        for name, precision in self.precision.items():
            shape = tuple(self.mean[name].shape)
            yield Part("precision", name, precision, shape=shape, nonnegative=True)
        for name, pair in self.factors.items():
            rows, columns = matrix_shape(self.mean[name])
            for role, factor, size in zip("AG", pair, (columns, rows)):
                if factor is not None:
                    yield Part(f"factor {role} of", name, factor, shape=(size, size))


def matrix_shape(tensor: Tensor) -> tuple[int, int]:
    """Rows and columns of a tensor as the matrix that Kronecker factors act on."""
    rows = tensor.shape[0] if tensor.ndim else 1
    return rows, tensor.numel() // rows if rows else 0
