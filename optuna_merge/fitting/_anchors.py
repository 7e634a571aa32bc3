"""Task weights whose truths the previews are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from optuna_merge.trials import alone_weights as alone_weights, uniform_weights as uniform_weights

Weights = Mapping[str, float]


def anchor_weights(names: Sequence[str], *, uniform: bool) -> tuple[dict[str, float], ...]:
    """Each task alone, and uniform weights where the finetune there corrects the merges."""
    return (*alone_weights(names).values(), *([uniform_weights(names)] if uniform else []))


def counts_as_reused(
    found: bool, weights: Weights, anchors: Sequence[Weights], repeat: int
) -> bool:
    """Whether a run that was found costs nothing; the anchor's cost is counted with its trial."""
    is_anchor = not repeat and max(weights.values()) < 1 and weights in anchors
    return found and not is_anchor
