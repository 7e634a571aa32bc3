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
        mixed_precision: "no", "bf16" or "fp16": whether forward passes and generation of previews
            run under torch's autocast. Parameters, merges and losses keep their precision. Real
            finetunes have their own setting in `FinetuneSettings`, and the damping is always
            chosen without autocast.
        memory_share: Posteriors are kept on the model's device if all of them take no more than
            this share of its free memory. Otherwise they stay on the host, where merges are
            computed, and are copied tensor by tensor. While a real finetune runs they leave the
            device. This setting is not part of the definition's fingerprint.
        heads: The heads of merged models. "merged": every task has the head of its own run, and
            shared heads are merged. "resolved": the last linear layer of each head is solved again
            for the merged body, on `head_examples` training examples of each task; see
            `HeadSolver`. "auto": "resolved" if all heads end in a linear layer and all losses are
            log-likelihoods that the package knows, otherwise "merged", as with language models.
            The definition records which of the two it is.
        head_examples: Training examples per task on which heads are solved; each preview needs a
            forward pass of each.
        head_decay: The pull of solved heads towards the merged heads; larger values keep more of
            the merged heads. Without an anchor 0.01 is truer for a head that several tasks share
            (studies/results/README.md, "Heads").
        anchor: "uniform": the finetune at uniform weights, which every study makes, corrects the
            merges at other weights; see `Anchor`. "none": merges stay as they are.
    """

    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    memory_share: float = 0.5
    heads: Literal["auto", "merged", "resolved"] = "auto"
    head_examples: int = 512
    head_decay: float = 0.1
    anchor: Literal["uniform", "none"] = "uniform"

    def __post_init__(self) -> None:
        if self.heads not in ("auto", "merged", "resolved"):
            raise ValueError(f"heads: auto, merged or resolved, got {self.heads!r}")
        if self.anchor not in ("uniform", "none"):
            raise ValueError(f"anchor: uniform or none, got {self.anchor!r}")
        if self.head_examples < 1:
            raise ValueError(f"head_examples must be at least 1, got {self.head_examples}")
        if not self.head_decay > 0:
            raise ValueError(f"head_decay must be positive, got {self.head_decay}")
        if self.mixed_precision not in _DTYPES:
            raise ValueError(f"mixed_precision: no, bf16 or fp16, got {self.mixed_precision!r}")
        if not 0 <= self.memory_share <= 1:
            raise ValueError(f"memory_share is a fraction, 0 to 1, got {self.memory_share}")

    def describe(self) -> dict[str, Any]:
        """What previews depend on, as JSON values; nothing of what is merged and no more."""
        described: dict[str, Any] = {}
        if self.mixed_precision != "no":
            described["mixed_precision"] = self.mixed_precision
        if self.heads != "merged":
            described["heads"] = self.heads
            described["head_examples"] = self.head_examples
            described["head_decay"] = self.head_decay
        if self.anchor != "none":
            described["anchor"] = self.anchor
        return described

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context that forward passes run in."""
        dtype = _DTYPES[self.mixed_precision]
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
