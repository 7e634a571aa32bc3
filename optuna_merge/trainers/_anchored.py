"""Averages that the finetune at uniform weights corrects, as sums of runs.

What the average at uniform weights misses is added by a share: sum a_t m_t + s (u - mean m_t). So
it is a sum of the tasks' runs m_t and of that finetune u, whose factors add up to 1.
"""

from __future__ import annotations

from collections.abc import Mapping

from optuna_merge.previews import anchor_share

ANCHOR = "uniform"
"""Stands for the finetune at uniform weights; no task is called so."""


def factors(weights: Mapping[str, float], *, anchored: bool) -> dict[str, float]:
    """What each run counts for, that at uniform weights as `ANCHOR`."""
    if not anchored:
        return dict(weights)
    share = anchor_share(weights.values())
    each = {task: weight - share / len(weights) for task, weight in weights.items()}
    return each | {ANCHOR: share}
