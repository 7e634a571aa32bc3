"""How many threads torch computes with, where nobody has said."""

from __future__ import annotations

import os

import torch
from torch import nn

SMALL = 1_000_000
"""Parameters of a model whose matrices are too small to be shared out among threads."""

_default = torch.get_num_threads()


def one_thread_if_small(model: nn.Module) -> None:
    """Let torch compute on one thread if the model is small.

    Threads on small matrices wait for each other longer than they compute. Nothing is done where
    `OMP_NUM_THREADS` is set, or where the study's own code has called `torch.set_num_threads`.
    """
    if "OMP_NUM_THREADS" in os.environ or torch.get_num_threads() != _default:
        return
    if sum(parameter.numel() for parameter in model.parameters()) <= SMALL:
        torch.set_num_threads(1)
