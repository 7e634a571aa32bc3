"""A data set that mixes the tasks' by sampling, in an order that depends on its seed alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch.utils.data import Dataset


class Mixture(Dataset[Any]):
    """As many examples as a run trains on, each of a task that is drawn by the shares.

    Tasks are drawn independently. Within a task examples come in a fresh permutation every epoch.
    The order is known from the start, so a run that goes on sees what it would have seen.
    """

    def __init__(
        self, data: Mapping[str, Any], shares: Mapping[str, float], size: int, seed: int
    ) -> None:
        self._data = [data[task] for task in shares]
        probabilities = np.array(list(shares.values()), float)
        draws = _generator("tasks", seed)
        which = draws.choice(len(self._data), size, p=probabilities / probabilities.sum())
        self._tasks = which.astype(np.int32)
        self._rows = np.empty(size, np.int64)
        for index, task in enumerate(shares):
            places = np.flatnonzero(which == index)
            self._rows[places] = _epochs(len(data[task]), len(places), _generator(task, seed))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._data[self._tasks[index]][int(self._rows[index])]


def _epochs(rows: int, count: int, draws: np.random.Generator) -> Any:
    if not count:
        return np.empty(0, np.int64)
    epochs = -(-count // rows)
    return np.concatenate([draws.permutation(rows) for _ in range(epochs)])[:count]


def _generator(name: str, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(repr((name, seed)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))
