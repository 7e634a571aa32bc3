"""Which previews are worth a real finetune: pruners for Optuna studies."""

from __future__ import annotations

from optuna_merge.pruners._decision import (
    Budget,
    Candidate,
    Ledger,
    Promote,
    Prune,
    best_fronts_first,
    best_scores_first,
    decide,
    is_duplicate_promotion,
    is_over_budget,
    preview_metrics,
    read_ledger,
)
from optuna_merge.pruners._promotion import PromotionPruner, should_prune

__all__ = [
    "Budget",
    "Candidate",
    "Ledger",
    "Promote",
    "PromotionPruner",
    "Prune",
    "best_fronts_first",
    "best_scores_first",
    "decide",
    "is_duplicate_promotion",
    "is_over_budget",
    "preview_metrics",
    "read_ledger",
    "should_prune",
]
