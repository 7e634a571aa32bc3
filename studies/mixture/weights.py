"""The task weights at which the mixture study has truths and previews."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from optuna_merge.trials import canonical_weights, uniform_weights
from studies.preview_quality import Weights
from studies.simple_rules import proportional


def drawn_weights(names: Sequence[str], inside: int, faces: int, seed: int = 0) -> list[Weights]:
    """Random weights: of all tasks, and of two to all but one of them, in turn.

    Each is uniform on the simplex of its tasks, rounded to thousandths.

    Args:
        names: Task names in order.
        inside: How many give every task some weight.
        faces: How many leave tasks out.
        seed: Of the draw.
    """
    count = len(names)
    inner, outer = (np.random.default_rng([seed, place]) for place in (0, 1))

    def drawn(rng: np.random.Generator, size: int) -> Weights:
        numbers = np.zeros(count)
        numbers[rng.permutation(count)[:size]] = rng.dirichlet(np.ones(size))
        thousandths = np.maximum(np.round(1000 * numbers), numbers > 0)
        return canonical_weights((thousandths / thousandths.sum()).tolist())

    found: list[Weights] = []
    for i in range(max(inside, faces)):
        if i < inside:
            found.append(drawn(inner, count))
        if i < faces:
            found.append(drawn(outer, 2 + i % (count - 2)))
    return found


def fixed_weights(names: Sequence[str], examples: Mapping[str, int]) -> list[Weights]:
    """Uniform weights, each task alone, and weights in proportion to the data."""
    alone = np.eye(len(names)).tolist()
    sizes = canonical_weights(proportional([examples[name] for name in names]))
    return [tuple(uniform_weights(names).values()), *map(canonical_weights, alone), sizes]
