"""From a curvature per element to one per tensor: the isotropic family, learned."""

from __future__ import annotations

from optuna_merge.posteriors._gaussian import DiagonalGaussian, IsotropicGaussian


def per_tensor(posterior: DiagonalGaussian) -> IsotropicGaussian:
    """The same mean with each tensor's mean precision: as much curvature, spread evenly.

    Merges then weigh whole tensors by curvature, one scalar a task and tensor.
    """
    scalars = {name: float(posterior.precision[name].double().mean()) for name in posterior.mean}
    return IsotropicGaussian(posterior.mean, dict(scalars))
