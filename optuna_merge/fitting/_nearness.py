"""How near two models are: whether one can be a finetune of the other."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from torch import Tensor

UNRELATED = 0.1
"""Median cosine below which two models count as of different bases; see studies/bases.py."""


def median_cosine(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float | None:
    """The median cosine of the matrices that both have, each taken as a vector; None without one.

    A finetune keeps it near 1; of two independent starts it is near 0. Vectors are left out: those
    of norms are near 1, and biases near 0, in any model. So are matrices that are zero in one, as
    those are that an adapter begins with.
    """
    cosines = []
    for name, tensor in one.items():
        if tensor.ndim > 1 and name in other:
            a, b = (t.detach().flatten().double().cpu() for t in (tensor, other[name]))
            norms = float(a.norm() * b.norm())
            if norms > 0:
                cosines.append(float(a @ b) / norms)
    return median(cosines) if cosines else None


def check_base(where: str, found: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> None:
    """See that a checkpoint may be a finetune of the base, by its numbers."""
    cosine = median_cosine(found, base)
    if cosine is not None and cosine < UNRELATED:
        raise ValueError(
            f"{where}: its matrices have nothing in common with those of the model that is "
            f"trained (the median of their cosines is {cosine:.2f}, of a finetune it is near 1), "
            f"so it is of another base, and a merge of both is no model. If it is of this base "
            f"all the same, give optuna_merge.definition.GivenRun(path, any_base=True)"
        )
