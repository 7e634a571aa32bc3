"""Models of a study as folders that transformers, timm, peft or plain torch load."""

from optuna_merge.exporting._card import Export
from optuna_merge.exporting._export import check_free, export_model

__all__ = ["Export", "check_free", "export_model"]
