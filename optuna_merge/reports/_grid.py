"""What a grid of finetunes would have cost, beside what the study did."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

STEPS = (0.25, 0.1)
"""Between neighbouring task weights: of a coarse grid, and of one as fine as people read."""


@dataclass(frozen=True)
class Grid:
    """A finetune at each of evenly spread task weights, and the seconds of all, where known."""

    step: float
    finetunes: int
    seconds: float | None


def grids(n_tasks: int, seconds: float | None) -> list[Grid]:
    """A coarse and a fine grid, by the seconds of one finetune; none of one task."""
    if n_tasks < 2:
        return []
    counts = {step: comb(round(1 / step) + n_tasks - 1, n_tasks - 1) for step in STEPS}
    return [
        Grid(step, count, None if seconds is None else count * seconds)
        for step, count in counts.items()
    ]


def grid_told(found: list[Grid]) -> str:
    """The grids in a sentence; empty without any."""
    if not found:
        return ""
    parts = [
        f"{grid.finetunes:,} in steps of {grid.step:g}"
        f"{'' if grid.seconds is None else f' ({time_told(grid.seconds)})'}"
        for grid in found
    ]
    return f"A grid of finetunes has {', '.join(parts)}."


def time_told(seconds: float) -> str:
    """A time as people say it, such as "5.2 min"."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
