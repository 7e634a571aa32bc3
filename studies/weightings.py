"""Task weights at which tables are made where a grid would be too large: a draw of the simplex.

What simple rules need stands among them: each task alone, uniform weights, weights in proportion
to the training examples, and what the doubling rule comes to from uniform weights on while one
task stays the worst.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optuna_merge.trials import canonical_weights
from studies.preview_quality import Weights
from studies.simple_rules import doubled, proportional

DOUBLINGS = 3
"""Of each task; a fourth leaves the others less than a fifteenth each."""

LEAST = 0.02
"""Of what is drawn inside: less is nearly the face, where a task is not trained at all."""


def scattered(sizes: Sequence[int], *, inside: int, faces: int, seed: int = 0) -> list[Weights]:
    """The weights of simple rules, then random ones, each once.

    Args:
        sizes: Training examples of each task.
        inside: Random weights at which every task has some, uniform on the simplex.
        faces: Random weights at which some tasks have none: how many and which is drawn first.
        seed: Of the draw.
    """
    count = len(sizes)
    rng = np.random.default_rng(seed)
    uniform = [1 / count] * count
    points = [*np.eye(count).tolist(), uniform, proportional(sizes)]
    for task in range(count):
        weights = uniform
        for _ in range(DOUBLINGS):
            weights = doubled(weights, task)
            points.append(weights)
    drawn = rng.dirichlet(np.ones(count), 1000 * max(inside, 1))
    points += drawn[drawn.min(axis=1) >= LEAST][:inside].tolist()
    for _ in range(faces):
        having = rng.choice(count, size=int(rng.integers(2, count)), replace=False)
        weights = [0.0] * count
        for task, share in zip(having, rng.dirichlet(np.ones(len(having)))):
            weights[task] = float(share)
        points.append(weights)
    return list(dict.fromkeys(canonical_weights(_rounded(p)) for p in points))


def parse_drawn(text: str) -> tuple[int, int]:
    """How many weights are drawn inside and on faces, as a flag says it.

    Raises:
        ValueError: it isn't two numbers.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise ValueError(f"--drawn is two numbers of weights, as in 28,12; got {text!r}")
    return int(parts[0]), int(parts[1])


def _rounded(weights: Sequence[float]) -> list[float]:
    """To three digits: what is drawn is written down as it is finetuned."""
    return [round(w, 3) for w in weights] if max(weights) - min(weights) > 1e-6 else [*weights]
