"""Accelerate's choice of device and precision for a finetune, which is of one process."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from optuna_merge.finetuning._settings import FinetuneSettings


def make_accelerator(mixed_precision: str) -> Accelerator:
    """Accelerate's choice for this process, which is not one of several that train together."""
    size = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    if size > 1:
        raise ValueError(
            f"launched as one of {size} processes (torchrun, accelerate launch), but our own "
            f"training loop is of one process; start a worker for each GPU on one study, with "
            f"CUDA_VISIBLE_DEVICES, or train by transformers' Trainer (om.from_trainer)"
        )
    # Accelerate holds one precision for the whole process, but runs may differ in theirs.
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed_precision:
        AcceleratorState._reset_state()
    return Accelerator(mixed_precision=mixed_precision)


def training_device(settings: FinetuneSettings) -> torch.device:
    """Where runs of these settings train, by accelerate's choice."""
    device: torch.device = make_accelerator(settings.mixed_precision).device
    return device
