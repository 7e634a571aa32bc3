"""How a finetune is done: part of the study's definition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Literal


@dataclass(frozen=True)
class FinetuneSettings:
    """Settings of finetunes; task runs and multitask finetunes share them, so that weights mean
    the same.

    Attributes:
        steps: Optimizer steps.
        batch_size: Examples of each task with positive weight in every step, so a step of several
            tasks has several times as many.
        optimizer: "adamw", or "ivon", which estimates the curvature as it goes, at the price of
            noisier steps; see `IVON`. The decay of its curvature is 1 - 4 / steps, so that
            little of the start is left in a run of any length.
        learning_rate: Peak rate of the body (and of shared heads). IVON's is in units of Newton
            steps, far above AdamW's. Default: 5e-5 with AdamW, 0.1 with IVON.
        head_learning_rate: Peak rate of the tasks' own heads, which start from random values;
            default: that of the body.
        weight_decay: AdamW's decay, on matrices only; IVON has the prior instead.
        ess: IVON's effective sample size; default: 100 times the training examples of the tasks
            with positive weight. With their number itself, the noise of the first steps destroys
            a pretrained body in a short run.
        delta: Precision of IVON's prior, which is centred at the pretrained body (and at the
            heads as they were made), on the scale of the averaged loss.
        initial_h: Where IVON's curvature begins.
        warmup: Fraction of the steps in which the rate rises linearly.
        decay: How the rate falls to zero afterwards, or "constant".
        max_grad_norm: Gradients are clipped to this global norm; infinity: not at all. With IVON
            it is the sampled gradients, so what is clipped is missing in the curvature, too.
        num_rungs: Evaluations (and checkpoints) at equal distances; the last one is at the end.
        rung_steps: Steps after which the run is evaluated, in place of `num_rungs`: rising, the
            last one is `steps`.
        evaluation_batch_size: Examples a forward pass when evaluating.
        mixed_precision: "no", "bf16" or "fp16", as accelerate has them; no "fp16" with IVON.
        seed: Seed of the data order, of dropout and of IVON's noise.
    """

    steps: int = 200
    batch_size: int = 32
    optimizer: Literal["adamw", "ivon"] = "adamw"
    learning_rate: float | None = None
    head_learning_rate: float | None = None
    weight_decay: float = 0.01
    ess: float | None = None
    delta: float = 1e-3
    initial_h: float = 1.0
    warmup: float = 0.1
    decay: Literal["linear", "cosine", "constant"] = "linear"
    max_grad_norm: float = 1.0
    num_rungs: int = 3
    rung_steps: tuple[int, ...] | None = None
    evaluation_batch_size: int = 64
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "num_rungs", "evaluation_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        positive = ("learning_rate", "head_learning_rate", "ess", "delta", "initial_h")
        for name in (*positive, "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.rung_steps is not None:
            rising = all(a < b for a, b in pairwise((0, *self.rung_steps)))
            if not rising or self.rung_steps[-1:] != (self.steps,):
                raise ValueError(
                    f"rung_steps must be positive, rise, and end at steps={self.steps}, got "
                    f"{self.rung_steps}"
                )
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup is a fraction of the steps, 0 to 1, got {self.warmup}")
        if self.decay not in ("linear", "cosine", "constant"):
            raise ValueError(f"decay must be linear, cosine or constant, got {self.decay!r}")
        if self.mixed_precision not in ("no", "bf16", "fp16"):
            raise ValueError(f"mixed_precision: no, bf16 or fp16, got {self.mixed_precision!r}")
        if self.optimizer not in ("adamw", "ivon"):
            raise ValueError(f"optimizer must be adamw or ivon, got {self.optimizer!r}")
        if self.optimizer == "ivon" and self.mixed_precision == "fp16":
            raise ValueError(
                "optimizer='ivon' with mixed_precision='fp16': the scaler of fp16 skips steps and "
                "scales the gradients that IVON estimates curvature from; use 'bf16' or 'no'"
            )

    @property
    def peak_rate(self) -> float:
        """Peak rate of the body, the optimizer's default if none was given."""
        return self.learning_rate or (0.1 if self.optimizer == "ivon" else 5e-5)

    def repeated(self, repeat: int) -> FinetuneSettings:
        """The same finetune once more, with another seed; with 0 these settings."""
        return replace(self, seed=self.seed + repeat)

    def rungs(self) -> Sequence[int]:
        """Steps after which the run is evaluated; ends with `steps`."""
        if self.rung_steps is not None:
            return self.rung_steps
        count = min(self.num_rungs, self.steps)
        return [math.ceil(self.steps * rung / count) for rung in range(1, count + 1)]

    def rate(self, step: int) -> float:
        """Factor of the peak learning rate in step `step`, counted from 0."""
        warmup = math.ceil(self.warmup * self.steps)
        if step < warmup:
            return (step + 1) / warmup
        if self.decay == "constant":
            return 1.0
        left = (self.steps - step) / max(1, self.steps - warmup)
        return left if self.decay == "linear" else 0.5 * (1 - math.cos(math.pi * left))

    def describe(self) -> dict[str, Any]:
        """As JSON values, for the study's definition."""
        return asdict(self) | {"max_grad_norm": str(self.max_grad_norm)}
