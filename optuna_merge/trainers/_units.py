"""Units of weights: what a program means by the weight of a task, and how ours become its.

Task weights weigh averaged losses. A program that samples is given shares of what it samples.
Where its loss is averaged over the label tokens of a batch, a task of long examples counts for
more than its share, which the conversion undoes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Kind = Literal["losses", "examples", "tokens"]

_WORDS: dict[Kind, str] = {
    "losses": "factors of the tasks' averaged losses",
    "examples": "shares of the examples that are sampled",
    "tokens": "shares of the tokens that are sampled",
}


@dataclass(frozen=True)
class WeightUnit:
    """What the weights that a program is given mean in its own loss.

    Attributes:
        kind: "losses": factors of each task's averaged loss; "examples": shares of the sampled
            examples; "tokens": shares of the sampled (packed) tokens, with a loss averaged over
            tokens.
        label_tokens: Of "examples", where the loss is averaged over the label tokens of a batch:
            by task these tokens in some of its examples, or their mean alone. None: the loss is
            averaged over examples.
        batch: Examples that one average is over; None: many. With one example a batch lengths
            don't matter, with many the shares are inverse to the lengths.

    Raises:
        ValueError: an unknown kind, label tokens for another kind, a task without label tokens.

    Examples:
        >>> unit = WeightUnit("examples", {"math": [300], "chat": [100]})
        >>> unit.converted({"math": 0.5, "chat": 0.5})
        {'math': 0.25, 'chat': 0.75}
    """

    kind: Kind = "losses"
    label_tokens: Mapping[str, Sequence[float]] | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(
                f"unit {self.kind!r} is not known; expected one of {', '.join(get_args(Kind))}"
            )
        if self.label_tokens is None:
            return
        if self.kind != "examples":
            raise ValueError(
                f"label_tokens are given for weights that are {_WORDS[self.kind]}; they belong to "
                f"kind='examples'"
            )
        for task, lengths in self.label_tokens.items():
            if not len(lengths) or not sum(lengths) > 0 or min(lengths) < 0:
                raise ValueError(
                    f"task {task!r}: no example has a label token (a label that is not -100), so "
                    f"that its loss is an average over nothing; look at its data and the collator"
                )

    def check_names(self, names: Iterable[str]) -> None:
        """Raise `ValueError` unless label tokens are known of all these tasks, or of none."""
        lengths = self.label_tokens
        if lengths is not None and (missing := [name for name in names if name not in lengths]):
            raise ValueError(
                f"label_tokens are known of {sorted(lengths)}, but not of task {missing[0]!r}"
            )

    def converted(self, weights: Mapping[str, float]) -> dict[str, float]:
        """The program's weights for task weights on averaged losses; zero stays zero."""
        lengths = self.label_tokens
        active = {task: weight for task, weight in weights.items() if weight > 0}
        if lengths is None or len(active) < 2:
            return dict(weights)
        self.check_names(active)
        shares = _shares(
            np.array(list(active.values())), [lengths[task] for task in active], self.batch
        )
        return dict.fromkeys(weights, 0.0) | dict(zip(active, shares.tolist()))

    def describe(self) -> dict[str, Any]:
        """As JSON values, for the study's definition."""
        means = None
        if self.label_tokens is not None:
            means = {task: float(np.mean(n)) for task, n in self.label_tokens.items()}
        return {"kind": self.kind, "mean_label_tokens": means, "batch": self.batch}

    def __str__(self) -> str:
        told = f"The program's weights are {_WORDS[self.kind]}"
        if self.label_tokens is None:
            return f"{told}, and equal the task weights."
        means = (f"{task} {np.mean(n):.4g}" for task, n in self.label_tokens.items())
        return (
            f"{told}. Its loss is averaged over label tokens (in the mean of an example: "
            f"{', '.join(means)}), so the shares are such that each task has its task weight of "
            f"the tokens of a batch."
        )


def _shares(weights: Array, lengths: Sequence[Sequence[float]], batch: int | None) -> Array:
    """Probabilities of the tasks at which they have `weights` of a batch's tokens, on average."""
    means = np.array([np.mean(each) for each in lengths])
    shares: Array = weights / means
    shares /= shares.sum()
    if batch is None:
        return shares
    expected = _TokenShares(lengths, batch)
    for _ in range(500):
        found = expected(shares)
        if np.abs(found - weights).max() < 1e-9:
            break
        shares *= weights / found
        shares /= shares.sum()
    return shares


class _TokenShares:
    """Expected share of each task of the label tokens of a batch of n independent examples.

    With Y an example's tokens and T its task, E[Y_1 [T_1 = t] / (Y_1 + ... + Y_n)], which
    1/x = ∫ exp(-s x) ds makes an integral of one dimension. It is taken over the logarithm of s,
    where the trapezoid rule is as good as exact.
    """

    def __init__(self, lengths: Sequence[Sequence[float]], batch: int) -> None:
        longest = max(map(max, lengths)) * batch
        shortest = min(n for each in lengths for n in each if n > 0)
        grid = np.linspace(math.log(1e-10 / longest), math.log(40 / shortest), 2000)
        s = np.exp(grid)
        self._batch = batch
        vanishing, falling = [], []
        for each in lengths:
            values, counts = np.unique(np.asarray(each, float), return_counts=True)
            decay = np.exp(-np.outer(s, values)) * (counts / counts.sum())
            vanishing.append(decay.sum(1))
            falling.append(decay @ values * s)
        self._vanishing, self._falling = np.array(vanishing), np.array(falling)

    def __call__(self, shares: Array) -> Array:
        rest = (shares @ self._vanishing) ** (self._batch - 1)
        found: Array = shares * (self._falling @ rest)
        found /= found.sum()  # what is missing is the chance of no token at all
        return found
