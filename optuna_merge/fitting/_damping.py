"""The damping of posteriors: between simple averaging and Fisher merging."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optuna_merge._base.files import write_json
from optuna_merge._base.tensors import load_sound
from optuna_merge.exceptions import CorruptFileError, NotFiniteError
from optuna_merge.posteriors import Posterior

_logger = logging.getLogger(__name__)

MULTIPLES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)
"""Multiples of the mean curvature that are tried."""


@dataclass(frozen=True)
class Damping:
    """A choice of damping and what it was chosen from.

    Attributes:
        value: The damping delta, on the scale of the averaged loss's curvature.
        sweep: Mean weighted loss on held-out data, by damping; empty if it was given.
        seconds: Time that the choice took.
    """

    value: float
    sweep: dict[float, float]
    seconds: float


def candidates(curvatures: Mapping[str, Posterior]) -> list[float]:
    """`MULTIPLES` of the mean curvature over tasks and parameters of undamped posteriors."""
    mean = sum(posterior.mean_curvature() for posterior in curvatures.values()) / len(curvatures)
    if not mean > 0:
        raise ValueError(
            f"the curvature of tasks {sorted(curvatures)} is zero everywhere; are the task runs "
            f"so sure of all examples? Use more examples or the isotropic family"
        )
    return [multiple * mean for multiple in MULTIPLES]


def trial_weightings(tasks: Sequence[str], emphasis: float = 0.6) -> list[dict[str, float]]:
    """Interior weights to judge merges at: uniform, and `emphasis` on each task in turn."""
    count = len(tasks)
    if count == 1:
        return [{tasks[0]: 1.0}]
    weightings = [dict.fromkeys(tasks, 1 / count)]
    rest = (1 - emphasis) / (count - 1)
    weightings += [{t: emphasis if t == task else rest for t in tasks} for task in tasks]
    return weightings


def choose(
    values: Sequence[float], weighted_loss: Callable[[float], float]
) -> tuple[float, dict[float, float]]:
    """The value of the smallest loss (of equal ones the largest: nearer to averaging)."""
    sweep = {value: weighted_loss(value) for value in values}
    best = min(sweep, key=lambda value: (sweep[value], -value))
    return best, sweep


Losses = Callable[[Mapping[str, float]], Mapping[str, float]]
"""From task weights to the losses of their merge on held-out data, by task."""


def noted_damping(
    path: Path, undamped: Mapping[str, Posterior], losses: Callable[[float], Losses]
) -> Damping:
    """The damping that the JSON file notes; where there is none it is chosen, and noted."""
    found = load_sound(path, _read)
    if found is not None:
        return found
    tried = candidates(undamped)
    _logger.info("choosing the damping: merges with each of %d on validation data", len(tried))
    started = time.perf_counter()
    tasks = list(undamped)
    value, sweep = choose(tried, lambda delta: _weighted(tasks, losses(delta)))
    if not math.isfinite(sweep[value]):
        raise NotFiniteError(
            f"no merge of the tasks {tasks} has a finite loss on validation data, whatever the "
            f"damping; tried were {', '.join(f'{d:.3g}' for d in sweep)}. Are their own finetunes "
            f"sound? A lower learning rate may help"
        )
    damping = Damping(value, sweep, time.perf_counter() - started)
    # JSON has no infinity: a loss that wasn't finite is null.
    noted = {repr(d): loss if math.isfinite(loss) else None for d, loss in sweep.items()}
    write_json(path, {"value": value, "sweep": noted, "seconds": damping.seconds})
    _logger.info("damping %.3g chosen among %d on validation loss", value, len(sweep))
    return damping


def _weighted(tasks: Sequence[str], losses: Losses) -> float:
    """Mean over some interior weights of the merge's weighted loss."""
    weightings = trial_weightings(tasks)
    total = 0.0
    for weights in weightings:
        found = losses(weights)
        total += sum(weight * found[task] for task, weight in weights.items())
    # A damping whose merges overflow is the worst, not an error.
    return total / len(weightings) if math.isfinite(total) else math.inf


def _read(path: Path) -> Damping:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        sweep = {
            float(value): math.inf if loss is None else float(loss)
            for value, loss in found["sweep"].items()
        }
        return Damping(float(found["value"]), sweep, float(found["seconds"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFileError(f"{path} holds no choice of damping ({error!r})") from error
