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
    """

    mixed_precision: Literal["no", "bf16", "fp16"] = "no"

    def __post_init__(self) -> None:
        if self.mixed_precision not in _DTYPES:
            raise ValueError(f"mixed_precision: no, bf16 or fp16, got {self.mixed_precision!r}")

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context that forward passes run in."""
        dtype = _DTYPES[self.mixed_precision]
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
