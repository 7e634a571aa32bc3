"""What every family's posterior of one task can do: all that merging, damping and checks use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol, Self

import torch
from torch import Tensor

Coupling = Literal["none", "tensor", "whole"]
"""What a precision couples: no two numbers, those within a tensor, or all."""


class Part(NamedTuple):
    """One stored tensor or number of the field `role`, the shape that it must have, its bounds."""

    role: str
    name: str
    value: Tensor | float
    shape: tuple[int, ...]
    nonnegative: bool = False
    may_vanish: bool = False

    def __str__(self) -> str:
        return f"{self.role} {self.name!r}" if self.name else self.role


@dataclass(frozen=True, eq=False)
class Gaussian(ABC):
    """One task's posterior N(mean, precision^-1): the base of all families' classes.

    Attributes:
        mean: Tensors by name, the task's parameters.
        coupling: What the precision couples: mixtures need independent parts.
        partial: Fields by name that may lack names of the mean.
    """

    coupling: ClassVar[Coupling] = "none"
    partial: ClassVar[frozenset[str]] = frozenset()

    mean: dict[str, Tensor]

    @abstractmethod
    def parts(self) -> Iterator[Part]:
        """What is stored, for checks."""
        for name, tensor in self.mean.items():
            yield Part("mean", name, tensor, shape=tuple(getattr(tensor, "shape", ())))

    @abstractmethod
    def elementwise(self, name: str) -> Tensor | float | None:
        """The elementwise part of a tensor's precision; None if it can't be told apart."""

    @abstractmethod
    def trace(self) -> float:
        """The sum of the precision's diagonal."""

    @abstractmethod
    def damped(self, delta: float) -> Self:
        """The same with `delta` added to its precision, the data part alone: H + delta I.

        It is on the scale of the averaged loss's curvature. Large values lead to simple averaging,
        small ones to Fisher merging.
        """

    def mean_curvature(self) -> float:
        """Mean of the precision's diagonal: the scale on which a damping is small or large."""
        return self.trace() / sum(tensor.numel() for tensor in self.mean.values())

    def precision_parts(
        self, role: str, tensors: Mapping[str, Tensor], *, may_vanish: bool = False
    ) -> Iterator[Part]:
        """The parts of elementwise precisions."""
        for name, tensor in tensors.items():
            yield Part(role, name, tensor, tuple(self.mean[name].shape), True, may_vanish)


class Sums(Protocol):
    """Sums over the terms of one merge, in fp64 and relative to a centre."""

    def add(self, weight: float, term: Gaussian) -> None:
        """Add a term of the family, or an elementwise one."""

    def solve(self) -> dict[str, Tensor]:
        """The merged means, in fp64; ValueError if the merged precision is not positive."""
        ...


class Coupled(Gaussian):
    """A Gaussian whose numbers depend on each other: its family solves for the merged mean."""

    coupling: ClassVar[Coupling] = "whole"

    @staticmethod
    @abstractmethod
    def sums(centre: Mapping[str, Tensor]) -> Sums:
        """Empty sums, relative to these tensors."""

    @abstractmethod
    def log_density(self, point: Mapping[str, Tensor]) -> float:
        """log N(point), less the constant -P/2 log 2 pi."""


def elementwise(term: Gaussian, name: str) -> Tensor:
    """The elementwise part of a tensor's precision in fp64, of the mean's shape."""
    value, mean = term.elementwise(name), term.mean[name]
    assert value is not None
    if isinstance(value, Tensor):
        return value.double()
    return torch.full(mean.shape, float(value), dtype=torch.float64, device=mean.device)


def double_sum(tensors: Mapping[str, Tensor]) -> float:
    """The sum of all numbers, in fp64."""
    return sum(float(tensor.double().sum()) for tensor in tensors.values())
