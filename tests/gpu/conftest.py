"""Tests that need a CUDA GPU; without one they are skipped.

With OPTUNA_MERGE_GPU_TESTS=cpu they run on the CPU, which shows that they are written right, and
nothing of CUDA.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from accelerate.state import AcceleratorState

REHEARSED = os.environ.get("OPTUNA_MERGE_GPU_TESTS") == "cpu"


@pytest.fixture
def device() -> torch.device:
    """Where the package is to work by itself."""
    if REHEARSED:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    return torch.device("cuda")


@pytest.fixture
def two_devices(device: torch.device) -> torch.device:
    """The same where there are two GPUs."""
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("no two CUDA GPUs")
    return device


@pytest.fixture
def take_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """From its call on runs of this process are on the CPU; accelerate decides once a process."""

    def take() -> None:
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        AcceleratorState._reset_state(reset_partial_state=True)

    yield take
    AcceleratorState._reset_state(reset_partial_state=True)
