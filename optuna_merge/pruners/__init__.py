"""Which previews are worth a real finetune: pruners for Optuna studies."""

from optuna_merge.pruners._budget import Budget
from optuna_merge.pruners._decision import best_fronts_first, best_scores_first, decide
from optuna_merge.pruners._ledger import Candidate, Ledger, read_ledger
from optuna_merge.pruners._pacing import is_time, preview_price
from optuna_merge.pruners._promotion import PromotionPruner, should_prune, stop_reason
from optuna_merge.pruners._prospect import Prospect, prospect

__all__ = [
    "Budget",
    "Candidate",
    "Ledger",
    "PromotionPruner",
    "Prospect",
    "best_fronts_first",
    "best_scores_first",
    "decide",
    "is_time",
    "preview_price",
    "prospect",
    "read_ledger",
    "should_prune",
    "stop_reason",
]
