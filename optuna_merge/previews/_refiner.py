"""A refined preview: a few weighted training steps from a merge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from optuna_merge.finetuning import FinetuneSettings
from optuna_merge.tasks import Evaluation


def refinement_settings(finetuning: FinetuneSettings, steps: int, rate: float) -> FinetuneSettings:
    """AdamW with fresh moments at a constant rate, a multiple of the finetune's."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not rate > 0:
        raise ValueError(f"rate is a positive multiple of the learning rate, got {rate}")
    adamw = finetuning
    if finetuning.optimizer != "adamw":  # its rates are in other units
        adamw = replace(finetuning, optimizer="adamw", learning_rate=None, head_learning_rate=None)
    head = adamw.head_learning_rate
    return replace(
        adamw,
        steps=steps,
        rung_steps=(steps,),
        learning_rate=rate * adamw.peak_rate,
        head_learning_rate=None if head is None else rate * head,
        warmup=0.0,
        decay="constant",
    )


def weighted_loss(weights: Mapping[str, float], evaluations: Mapping[str, Evaluation]) -> float:
    """`sum_t a_t loss_t`, infinite where it is not a number."""
    total = sum(a * evaluations[task].loss.value for task, a in weights.items() if a)
    return total if total == total else float("inf")
