"""Random numbers that a run draws: its own, and the same on every machine.

Dropout draws from torch; transforms of images, when they are read, also from `random` and NumPy.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_draws(seed: int) -> None:
    """Seed the generators of torch, `random` and NumPy, all that transforms are known to use."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # the same, but for a traceback that torch keeps each time for when CUDA begins
        torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % (1 << 32))  # noqa: NPY002 - the generator that transforms use


@contextmanager
def own_draws(device: torch.device, seed: int = 0) -> Iterator[None]:
    """Within this block draws begin at the seed; the process's own go on after it."""
    theirs, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seed_draws(seed)
        try:
            yield
        finally:
            random.setstate(theirs)
            np.random.set_state(numpys)  # noqa: NPY002
