"""Posteriors on another device, and the memory that they take there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from optuna_merge.posteriors._families import Posterior


def posterior_bytes(posterior: Posterior) -> int:
    """Bytes of the posterior's tensors, one that several of its parts share counted each time."""
    total = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    _mapped(posterior, count)
    return total


def posterior_to(posterior: Posterior, device: torch.device | str) -> Posterior:
    """The posterior with its tensors on a device; those that are there already are not copied.

    Single numbers stay where they are: merges read them on the host.
    """
    return _mapped(posterior, lambda t: t.to(device) if t.ndim else t)  # type: ignore[no-any-return]


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A posterior, or what its fields hold, with the function applied to all tensors."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {name: _mapped(part, function) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(part, function) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: _mapped(getattr(value, f.name), function) for f in fields(value)}
        return replace(value, **parts)
    return value
