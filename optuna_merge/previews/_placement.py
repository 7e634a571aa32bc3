"""Where posteriors are kept while previews are made: on the model's device or on the host."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch

from optuna_merge.posteriors import Posterior, posterior_bytes, posterior_to

_logger = logging.getLogger(__name__)


def fits(needed: int, free: int, share: float) -> bool:
    """Whether posteriors of `needed` bytes may take that share of a device's `free` bytes."""
    return needed <= share * free


def place_posteriors(
    posteriors: Mapping[str, Posterior],
    device: torch.device,
    share: float,
    free: int | None = None,
    *,
    beside: int = 0,
) -> dict[str, Posterior]:
    """The posteriors on the device if all fit into that share of its free memory, else as is."""
    if device.type == "cpu":
        return dict(posteriors)
    needed = sum(posterior_bytes(posterior) for posterior in posteriors.values()) + beside
    free = free_bytes(device) if free is None else free
    if not fits(needed, free, share):
        _logger.info(
            "posteriors of %.1f GiB stay on the host: %s has %.1f GiB free, of which they may "
            "take %g %%",
            needed / 2**30,
            device,
            free / 2**30,
            100 * share,
        )
        return dict(posteriors)
    return {name: posterior_to(posterior, device) for name, posterior in posteriors.items()}


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on the device; 0 where that isn't known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch holds but doesn't use at the moment is free for it.
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + held
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return 0
