"""Samplers for studies of task weights."""

from __future__ import annotations

from optuna_merge.samplers._sampler import PreviewSampler

__all__ = ["PreviewSampler"]
