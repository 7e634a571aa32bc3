"""A stand-in for your LightningModule and your data: a small net, and points of three classes."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset


def points(task: int, size: int) -> TensorDataset:
    """Three classes of points, by linear functions that are the task's."""
    x = torch.randn(size, 6, generator=Generator().manual_seed(size))
    functions = torch.randn(6, 3, generator=Generator().manual_seed(task))
    return TensorDataset(x, (x @ functions).argmax(1))


class Net(lightning.LightningModule):
    """A module like any other, that always begins at the same values."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 2e-2)


TASKS = ("red", "blue")
TRAIN = {task: points(1 + i, 300) for i, task in enumerate(TASKS)}
VALIDATION = {task: points(1 + i, 200) for i, task in enumerate(TASKS)}
