"""From task weights and posteriors to parameters: pure functions of tensors, and
`merge_files` from disk to disk."""

from __future__ import annotations

from optuna_merge._base.batch_norm import reestimate_batch_norm
from optuna_merge.merging._files import merge_files
from optuna_merge.merging._merge import merge, merge_into

__all__ = ["merge", "merge_files", "merge_into", "reestimate_batch_norm"]
