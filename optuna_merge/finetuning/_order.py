"""Seeds and data order as pure functions of the step, so that a resumed run needs no RNG state."""

from __future__ import annotations

import hashlib

import torch


def derived_seed(*parts: object) -> int:
    """A 63-bit seed from the parts, the same on every machine."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Order:
    """Which examples of one task each step sees: a fresh permutation every epoch."""

    def __init__(self, task: str, size: int, batch_size: int, seed: int) -> None:
        self._task, self._size, self._batch_size, self._seed = task, size, batch_size, seed
        self._epochs: dict[int, list[int]] = {}

    def rows(self, step: int) -> list[int]:
        """Indices of the examples of step `step`, counted from 0."""
        start = step * self._batch_size
        return [
            self._permutation(position // self._size)[position % self._size]
            for position in range(start, start + self._batch_size)
        ]

    def _permutation(self, epoch: int) -> list[int]:
        if epoch not in self._epochs:
            generator = torch.Generator().manual_seed(
                derived_seed("order", self._seed, self._task, epoch)
            )
            # Keep the newest two: a batch may straddle epochs, long runs have many.
            while len(self._epochs) > 1:
                self._epochs.pop(min(self._epochs))
            self._epochs[epoch] = torch.randperm(self._size, generator=generator).tolist()
        return self._epochs[epoch]
