"""Posteriors of single tasks: families as plain data, curvature estimators, the file format."""

from __future__ import annotations

from optuna_merge._base.labels import categorical_labels, gaussian_labels
from optuna_merge._base.tensors import load_tensors, read_metadata, save_tensors
from optuna_merge.posteriors._adam import adam_second_moments
from optuna_merge.posteriors._checkpoints import load_checkpoint, load_lora_factors
from optuna_merge.posteriors._damped import damped, mean_curvature
from optuna_merge.posteriors._families import Posterior
from optuna_merge.posteriors._files import load_posterior, posterior_hash, save_posterior
from optuna_merge.posteriors._full import FullGaussian
from optuna_merge.posteriors._full_fisher import full_fisher
from optuna_merge.posteriors._gaussian import DiagonalGaussian, IsotropicGaussian
from optuna_merge.posteriors._kronecker import KroneckerGaussian
from optuna_merge.posteriors._kronecker_fisher import kronecker_fisher
from optuna_merge.posteriors._low_rank import LowRankGaussian
from optuna_merge.posteriors._low_rank_fisher import low_rank_fisher
from optuna_merge.posteriors._mixture import Mixture
from optuna_merge.posteriors._per_tensor import per_tensor
from optuna_merge.posteriors._placement import posterior_bytes, posterior_to
from optuna_merge.posteriors._squared_gradients import squared_gradients

__all__ = [
    "DiagonalGaussian",
    "FullGaussian",
    "IsotropicGaussian",
    "KroneckerGaussian",
    "LowRankGaussian",
    "Mixture",
    "Posterior",
    "adam_second_moments",
    "categorical_labels",
    "damped",
    "full_fisher",
    "gaussian_labels",
    "kronecker_fisher",
    "load_checkpoint",
    "load_lora_factors",
    "load_posterior",
    "load_tensors",
    "low_rank_fisher",
    "mean_curvature",
    "per_tensor",
    "posterior_bytes",
    "posterior_hash",
    "posterior_to",
    "read_metadata",
    "save_posterior",
    "save_tensors",
    "squared_gradients",
]
