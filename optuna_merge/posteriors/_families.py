"""The list of families: what a posterior can be."""

from __future__ import annotations

from typing import Any

from optuna_merge.posteriors._full import FullGaussian
from optuna_merge.posteriors._gaussian import DiagonalGaussian, IsotropicGaussian
from optuna_merge.posteriors._kronecker import KroneckerGaussian
from optuna_merge.posteriors._low_rank import LowRankGaussian
from optuna_merge.posteriors._mixture import Gaussian, Mixture

Posterior = Gaussian | Mixture
"""Any of the families."""

FAMILIES: dict[str, Any] = {
    family.__name__: family
    for family in (
        IsotropicGaussian,
        DiagonalGaussian,
        LowRankGaussian,
        KroneckerGaussian,
        FullGaussian,
        Mixture,
    )
}
