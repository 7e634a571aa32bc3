"""The diagonal in the memory of its row and column means, as Adafactor keeps second moments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from optuna_merge.posteriors._diagonal import SQUARES, DiagonalGaussian
from optuna_merge.posteriors._family import Family
from optuna_merge.posteriors._gaussian import Gaussian, Part, double_sum
from optuna_merge.posteriors._linear_algebra import matrix_shape


@dataclass(frozen=True, eq=False)
class RowsColumnsGaussian(Gaussian):
    """For each matrix the elementwise precisions R_i C_j / mean(R) + damping.

    Of all products of a row and a column it is the nearest to a diagonal with these means in
    generalised Kullback-Leibler divergence (Adafactor, arXiv 1804.04235, section 3). Beside the
    mean it takes rows + columns numbers a matrix; merges write the products out, some tensors at
    a time, and let them go.

    Args:
        mean: Tensors by name. A tensor of more than two dimensions counts as a matrix of its first
            dimension by all others.
        rows: For each name of a matrix R, the means over its columns, not negative.
        columns: For the same names C, the means over the rows. Where R is zero, so is the product.
        precision: Elementwise precisions of tensors without rows and columns (vectors, scalars);
            those that are in neither have the precision `damping`.
        damping: The prior's precision, included once: it is added to the products, and to
            `precision`.
    """

    partial = frozenset({"rows", "columns", "precision"})

    rows: dict[str, Tensor]
    columns: dict[str, Tensor]
    precision: dict[str, Tensor] = field(default_factory=dict)
    damping: float = 0.0

    def __post_init__(self) -> None:
        if odd := sorted(self.rows.keys() ^ self.columns.keys()):
            raise ValueError(f"{odd[0]!r} has only one of rows and columns; expected both or none")
        if both := sorted(self.rows.keys() & self.precision.keys()):
            raise ValueError(f"{both[0]!r} has rows and columns, and an elementwise precision")

    def parts(self) -> Iterator[Part]:
        yield from super().parts()
        yield Part("damping", "", self.damping, shape=(), nonnegative=True)
        yield from self.precision_parts("precision", self.precision, may_vanish=True)
        for name, rows in self.rows.items():
            shape = matrix_shape(self.mean[name])
            yield Part("rows", name, rows, shape[:1], True, may_vanish=True)
            yield Part("columns", name, self.columns[name], shape[1:], True, may_vanish=True)

    def elementwise(self, name: str) -> Tensor | float:
        """The precision of the tensor `name`, written out."""
        if name in self.precision:
            return self.precision[name] + self.damping
        if name not in self.rows:
            return float(self.damping)
        products = torch.outer(_shares(self.rows[name]), self.columns[name])
        return products.add_(self.damping).view(self.mean[name].shape)

    def trace(self) -> float:
        products = sum(
            float(_shares(rows.double()).sum() * self.columns[name].double().sum())
            for name, rows in self.rows.items()
        )
        count = sum(tensor.numel() for tensor in self.mean.values())
        return products + double_sum(self.precision) + self.damping * count

    def damped(self, delta: float) -> Self:
        return replace(self, damping=self.damping + delta)


def rows_columns(posterior: DiagonalGaussian) -> RowsColumnsGaussian:
    """The row and column means of a diagonal's matrices; its vectors and scalars as they are."""
    matrices = {
        name: posterior.precision[name].reshape(matrix_shape(mean))
        for name, mean in posterior.mean.items()
        if mean.ndim > 1 and mean.numel()
    }
    return RowsColumnsGaussian(
        posterior.mean,
        {name: matrix.mean(1) for name, matrix in matrices.items()},
        {name: matrix.mean(0) for name, matrix in matrices.items()},
        {name: posterior.precision[name] for name in posterior.mean if name not in matrices},
    )


def _shares(rows: Tensor) -> Tensor:
    """R / mean(R), zeros where all of R is zero."""
    mean = rows.mean()
    return rows / mean if mean > 0 else torch.zeros_like(rows)


ROWS_COLUMNS = Family(
    "rows_columns",
    "the diagonal, of matrices their row and column means alone",
    RowsColumnsGaussian,
    SQUARES,
    made=rows_columns,
)
