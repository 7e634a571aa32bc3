"""Which previews are worth a real finetune: pruners for Optuna studies."""

from __future__ import annotations

from optuna_merge.pruners._decision import (
    RACED_OUT,
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
from optuna_merge.pruners._promotion import PromotionPruner, hand_over, should_prune
from optuna_merge.pruners._race_bar import RaceBar, race_bar

__all__ = [
    "RACED_OUT",
    "Budget",
    "Candidate",
    "Ledger",
    "Promote",
    "PromotionPruner",
    "Prune",
    "RaceBar",
    "best_fronts_first",
    "best_scores_first",
    "decide",
    "hand_over",
    "is_duplicate_promotion",
    "is_over_budget",
    "preview_metrics",
    "race_bar",
    "read_ledger",
    "should_prune",
]
