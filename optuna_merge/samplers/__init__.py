"""Samplers for studies of task weights."""

from optuna_merge.samplers._sampler import PreviewSampler

__all__ = ["PreviewSampler"]
