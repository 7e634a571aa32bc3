"""From task weights and posteriors to parameters: pure functions, no files, no Optuna."""

from __future__ import annotations

from optuna_merge.merging._merge import merge, merge_into, merge_many

__all__ = ["merge", "merge_into", "merge_many"]
