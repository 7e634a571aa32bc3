"""Posteriors of single tasks: families as plain data, curvature estimators, the file format."""

from __future__ import annotations

from optuna_merge._base.labels import categorical_labels, gaussian_labels
from optuna_merge._base.tensors import load_tensors, read_metadata, save_tensors
from optuna_merge.posteriors._adam import adam_second_moments
from optuna_merge.posteriors._checkpoints import load_checkpoint
from optuna_merge.posteriors._checks import (
    check_factors as check_factors,
    check_posteriors as check_posteriors,
)
from optuna_merge.posteriors._diagonal import DiagonalGaussian, squared_gradients
from optuna_merge.posteriors._families import CLASSES as CLASSES, FAMILIES, Posterior
from optuna_merge.posteriors._family import Curvature, Evidence, Family
from optuna_merge.posteriors._files import load_posterior, save_posterior
from optuna_merge.posteriors._full import FullGaussian, full_fisher
from optuna_merge.posteriors._gaussian import (
    Coupled as Coupled,
    Gaussian,
    elementwise as elementwise,
)
from optuna_merge.posteriors._isotropic import IsotropicGaussian
from optuna_merge.posteriors._kronecker import KroneckerGaussian
from optuna_merge.posteriors._kronecker_fisher import kronecker_fisher
from optuna_merge.posteriors._low_rank import LowRankGaussian, low_rank_fisher
from optuna_merge.posteriors._mixture import RESPONSIBILITIES as RESPONSIBILITIES, Mixture
from optuna_merge.posteriors._per_tensor import per_tensor
from optuna_merge.posteriors._placement import posterior_bytes, posterior_to
from optuna_merge.posteriors._rows_columns import RowsColumnsGaussian, rows_columns
from optuna_merge.posteriors._settings import PosteriorSettings

__all__ = [
    "FAMILIES",
    "Curvature",
    "DiagonalGaussian",
    "Evidence",
    "Family",
    "FullGaussian",
    "Gaussian",
    "IsotropicGaussian",
    "KroneckerGaussian",
    "LowRankGaussian",
    "Mixture",
    "Posterior",
    "PosteriorSettings",
    "RowsColumnsGaussian",
    "adam_second_moments",
    "categorical_labels",
    "full_fisher",
    "gaussian_labels",
    "kronecker_fisher",
    "load_checkpoint",
    "load_posterior",
    "load_tensors",
    "low_rank_fisher",
    "per_tensor",
    "posterior_bytes",
    "posterior_to",
    "read_metadata",
    "rows_columns",
    "save_posterior",
    "save_tensors",
    "squared_gradients",
]
