"""A truth that corrects the merges around it: the finetune at uniform weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch import Tensor

from optuna_merge.models import MultitaskModel


def anchor_share(weights: Iterable[float]) -> float:
    """How much of the correction at uniform weights a merge elsewhere takes.

    `sqrt(T^T prod_t a_t)`: 1 at uniform weights and 0 wherever a task has none.
    """
    numbers = list(weights)
    return math.sqrt(math.prod(len(numbers) * number for number in numbers))


class Anchor:
    """The difference of finetune and merge at uniform weights, which corrects other merges.

    The finetune at weights `u` has parameters `theta_u`, and the merge there is wrong by
    `theta_u - m(u)`, known in full. At a task alone a merge is the task's own run and misses
    nothing. Between them the merge is corrected by a share of what it misses at `u`,

        theta(a) = m(a) + s(a) (theta_u - m(u)),

    with `s` from `anchor_share`. Heads that are solved again are solved for the corrected body.

    Args:
        truth: The finetune's trained parameters, heads included.
        share: `s`, of the task weights in order.
    """

    def __init__(
        self, truth: Mapping[str, Tensor], share: Callable[[Iterable[float]], float] = anchor_share
    ) -> None:
        self.share = share
        self._truth = truth
        self._missing: dict[str, Tensor] = {}
        self._placed: dict[str, Tensor] = {}

    @property
    def is_measured(self) -> bool:
        """Whether it is known what the merge misses."""
        return bool(self._missing)

    @property
    def is_placed(self) -> bool:
        """Whether what is missing is kept on the model's device."""
        return bool(self._placed)

    @property
    def bytes(self) -> int:
        """Memory of what the merge misses."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._truth.values())

    def measure(self, model: MultitaskModel, without: Collection[str] = ()) -> None:
        """Take what the merge at uniform weights, which is in the model, misses; to the host."""
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            self._missing = {
                name: tensor.cpu() - parameters[name].to("cpu", tensor.dtype)
                for name, tensor in self._truth.items()
                if name not in without
            }

    def place(self, device: torch.device) -> None:
        """Keep what is missing on the model's device."""
        if not self._placed:
            self._placed = {name: tensor.to(device) for name, tensor in self._missing.items()}

    def release(self) -> None:
        """Take it off that device again."""
        self._placed = {}

    def correct(self, model: MultitaskModel, share: float) -> None:
        """Add the share of what is missing to the model's parameters, in place."""
        if not share:
            return
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, tensor in (self._placed or self._missing).items():
                parameter = parameters[name]
                parameter.add_(tensor.to(parameter.device), alpha=share)
