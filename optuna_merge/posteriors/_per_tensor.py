"""From a curvature per element to one per tensor: the isotropic family, learned."""

from __future__ import annotations

from optuna_merge.posteriors._diagonal import SQUARES, DiagonalGaussian
from optuna_merge.posteriors._family import Family
from optuna_merge.posteriors._isotropic import IsotropicGaussian


def per_tensor(posterior: DiagonalGaussian) -> IsotropicGaussian:
    """The same mean with each tensor's mean precision: as much curvature, spread evenly.

    Merges then weigh whole tensors by curvature, one scalar a task and tensor.
    """
    scalars = {name: float(posterior.precision[name].double().mean()) for name in posterior.mean}
    return IsotropicGaussian(posterior.mean, dict(scalars))


PER_TENSOR = Family(
    "per_tensor",
    "weighted by each tensor's mean curvature",
    IsotropicGaussian,
    SQUARES,
    made=per_tensor,
)
