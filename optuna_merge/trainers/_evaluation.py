"""A Trainer's data and metrics, task by task; in several processes as in one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from optuna_merge._base.swapped import swapped
from optuna_merge.exceptions import ProgramError
from optuna_merge.trainers._data import rows_of
from optuna_merge.trainers._labels import label_tokens
from optuna_merge.trainers._posteriors import Evaluated

_COUNTED = 512
"""Examples whose label tokens are counted."""


def evaluate_tasks(
    trainer: Any, tasks: Mapping[str, Any], metric: str, limit: int | None = None
) -> Evaluated:
    """The Trainer's `evaluate` of every task, on at most so many examples; by all processes."""
    metrics, losses = {}, {}
    for task in tasks:  # one by one: names that begin alike can't be mixed up
        data = trainer.eval_dataset[task]
        if limit is not None and limit < len(data):
            data = rows_of(data, range(limit))
        # Else a Trainer multiplies the losses by the number of processes, of a model too that has
        # not divided them by the label tokens of all.
        with swapped(trainer.args, "average_tokens_across_devices", False):
            found = trainer.evaluate(data, metric_key_prefix=f"eval_{task}")
        key = metric.replace("{task}", task)
        if key not in found:
            raise ProgramError(
                f"task {task!r}: the Trainer's evaluate gives {sorted(found)}, but no {key!r}; "
                f"expected the metric there: look at metric= and compute_metrics"
            )
        metrics[task] = float(found[key])
        if (loss := found.get(f"eval_{task}_loss")) is not None:
            losses[task] = float(loss)
    return Evaluated(metrics, losses if len(losses) == len(metrics) else {})


def label_lengths(
    trainer: Any, tasks: Mapping[str, Any], *, shifts: bool
) -> dict[str, list[float]] | None:
    """Label tokens of some examples of each task; None: labels are no tokens."""
    lengths: dict[str, list[float]] = {}
    for task, data in tasks.items():
        count = min(len(data), _COUNTED)
        some = rows_of(data, [place * len(data) // count for place in range(count)])
        counted: list[float] = []
        for batch in one_by_one(trainer, some):
            found = label_tokens(batch, shifts=shifts)
            if found is None:
                return None
            counted.append(float(found.sum()))
        lengths[task] = counted
    return lengths


def one_by_one(trainer: Any, data: Any) -> Iterator[dict[str, Any]]:
    """Batches of one example, as the Trainer makes them, on the model's device; in no shards."""
    with swapped(trainer.args, "per_device_eval_batch_size", 1):
        loader = trainer.get_eval_dataloader(data)
    if trainer.args.world_size > 1:  # accelerate gives each process a part of the examples
        loader = DataLoader(loader.dataset, collate_fn=loader.collate_fn)
    device = next(trainer.model.parameters()).device
    for batch in loader:
        yield {
            key: value.to(device) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }
