"""How previews are evaluated: part of a study's definition."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

_DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class PreviewSettings:
    """How previews are evaluated.

    Attributes:
        mixed_precision: "no", "bf16" or "fp16": forward passes (and generation) of previews run
            under torch's autocast on the model's device. Parameters, merges and losses stay as
            they are, and so do real finetunes, of which precision and evaluation are
            `FinetuneSettings`'; the damping is always chosen without it.
        memory_share: Posteriors are kept on the model's device if all of them take no more than
            this share of its free memory; else they stay on the host, where merges are computed,
            and are copied tensor by tensor. They make room for real finetunes. Not part of the
            definition's fingerprint.
    """

    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    memory_share: float = 0.5

    def __post_init__(self) -> None:
        if self.mixed_precision not in _DTYPES:
            raise ValueError(f"mixed_precision: no, bf16 or fp16, got {self.mixed_precision!r}")
        if not 0 <= self.memory_share <= 1:
            raise ValueError(f"memory_share is a fraction, 0 to 1, got {self.memory_share}")

    def describe(self) -> dict[str, Any]:
        """What previews depend on, as JSON values; empty for the default."""
        if self.mixed_precision == "no":
            return {}
        return {"mixed_precision": self.mixed_precision}

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context that forward passes run in."""
        dtype = _DTYPES[self.mixed_precision]
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
