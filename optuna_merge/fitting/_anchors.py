"""Task weights whose truths the previews are made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from optuna_merge.goals import below_nadir
from optuna_merge.trials import alone_weights as alone_weights, uniform_weights as uniform_weights

Weights = Mapping[str, float]


def anchor_weights(names: Sequence[str], *, uniform: bool) -> tuple[dict[str, float], ...]:
    """Each task alone, and uniform weights where the finetune there corrects the merges."""
    return (*alone_weights(names).values(), *([uniform_weights(names)] if uniform else []))


def reference_point(
    runs: Iterable[Mapping[str, float]], greater_is_better: Mapping[str, bool]
) -> dict[str, float]:
    """A tenth of the range beyond the worst that each task has in the single-task runs."""
    signs = np.array([1.0 if greater else -1.0 for greater in greater_is_better.values()])
    points = [[metrics[task] for task in greater_is_better] for metrics in runs]
    return dict(zip(greater_is_better, (signs * below_nadir(signs * np.array(points))).tolist()))


def counts_as_reused(
    found: bool, weights: Weights, anchors: Sequence[Weights], repeat: int
) -> bool:
    """Whether a run that was found costs nothing; the anchor's cost is counted with its trial."""
    is_anchor = not repeat and max(weights.values()) < 1 and weights in anchors
    return found and not is_anchor
