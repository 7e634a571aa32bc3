"""A refined preview: a few weighted training steps from a merge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from optuna_merge._base.turns import models_turn
from optuna_merge.finetuning import FinetuneSettings, FinetuneStore, Start
from optuna_merge.models import MultitaskModel
from optuna_merge.previews._previewer import Previewer
from optuna_merge.tasks import Evaluation, Task

Merge = Callable[[Mapping[str, float]], Start]
"""Task weights to the start of a finetune at their merge."""


def refinement_settings(finetuning: FinetuneSettings, steps: int, rate: float) -> FinetuneSettings:
    """AdamW with fresh moments at a constant rate, a multiple of the finetune's.

    Raises:
        ValueError: `steps` is below 1, or `rate` is not positive.
    """
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


@models_turn()
def refined(
    weights: Mapping[str, float],
    settings: FinetuneSettings,
    *,
    previewer: Previewer,
    model: MultitaskModel,
    tasks: Sequence[Task],
    store: FinetuneStore,
    start: Merge,
) -> dict[str, Evaluation]:
    """Train from the merge at `weights`; the run is kept in the store.

    Args:
        weights: Task weight by name, on the simplex.
        settings: Those of `refinement_settings`.
        previewer: Gives the merge.
        model: The model that is trained.
        tasks: The model's tasks, in order.
        store: Where runs are kept.
        start: Gives the merge at some weights as the start of a finetune.

    Returns:
        The refined model's evaluations by task, or the merge's own where the training has not
        lowered the weighted loss.
    """
    merge = previewer(weights).evaluations
    previewer.release()  # training needs the device's memory
    run = store.run(model, tasks, weights, settings, start=start(weights))
    return min(merge, run.evaluations, key=lambda found: weighted_loss(weights, found))


def weighted_loss(weights: Mapping[str, float], evaluations: Mapping[str, Evaluation]) -> float:
    """`sum_t a_t loss_t`, infinite where it is not a number."""
    total = sum(a * evaluations[task].loss.value for task, a in weights.items() if a)
    return total if total == total else float("inf")
