from .pruner import PromotionPruner


__all__ = ["PromotionPruner"]
