"""The pieces that a posterior is stored in, as its checks see them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor


class Part(NamedTuple):
    """One stored tensor or number and what must hold of it.

    Attributes:
        role: The posterior's field, for instance "mean".
        name: The tensor's name within the field, empty if the field is a single one.
        value: The tensor or number itself.
        shape: The shape that it must have.
        nonnegative: Whether negative values are refused.
    """

    role: str
    name: str
    value: Tensor | float
    shape: tuple[int, ...]
    nonnegative: bool = False

    def __str__(self) -> str:
        return f"{self.role} {self.name!r}" if self.name else self.role


def mean_parts(mean: dict[str, Tensor]) -> Iterator[Part]:
    """The parts of a mean, which may have any shapes."""
    for name, tensor in mean.items():
        yield Part("mean", name, tensor, shape=tuple(getattr(tensor, "shape", ())))
