"""The machine: its card, versions, and what a copy in its memory moves a second."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from studies.gpu.findings import Findings, findings_of_command

PACKAGES = ("torch", "transformers", "accelerate", "peft", "optuna", "safetensors", "numpy")


def device() -> torch.device:
    """The GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds_of(work: Callable[[], Any], repeats: int = 5) -> float:
    """The least time of some repeats after one more, the device's queue empty at both ends."""
    times = []
    for _ in range(repeats + 1):
        _wait()
        started = time.perf_counter()
        kept = work()
        _wait()
        times.append(time.perf_counter() - started)
        del kept
    return min(times[1:])


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def copy_rate(size: int) -> float:
    """Bytes a second, read and written, of copying so many bytes within the device's memory."""
    source = torch.ones(size, dtype=torch.uint8, device=device())
    target = torch.empty_like(source)
    return 2 * size / seconds_of(lambda: target.copy_(source), 10)


def memory() -> int | None:
    """The device's memory in bytes; None for a CPU."""
    if not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(0).total_memory)


def describe(found: Findings) -> None:
    """Write down what machine this is."""
    on_gpu = torch.cuda.is_available()
    found.put("card", torch.cuda.get_device_name(0) if on_gpu else None)
    found.put("cards", torch.cuda.device_count() if on_gpu else 0)
    found.put("memory_bytes", memory())
    found.put("cpu", platform.processor() or platform.machine())
    found.put("versions", {"python": platform.python_version()} | _versions())
    found.put("cuda", torch.version.cuda)
    size = 1 << (24 if found.miniature else 30)
    found.put("copy_bytes_per_second", copy_rate(size))


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


if __name__ == "__main__":
    describe(findings_of_command()[0])
