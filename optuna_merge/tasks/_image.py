"""Image classification tasks from `datasets.Dataset`s."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from optuna_merge.tasks._data import LABELS, Data
from optuna_merge.tasks._task import Task


def image_task(
    name: str,
    splits: Any,
    transform: Callable[[Any], Tensor],
    *,
    train_transform: Callable[[Any], Tensor] | None = None,
    num_labels: int | None = None,
    image: str = "image",
    label: str = "label",
    **options: Any,
) -> Task:
    """A `Task` that classifies images; each is decoded and transformed when it is read.

    Args:
        name: The task's name.
        splits: `{"train": ..., "validation": ..., "test": ...}` of `datasets.Dataset` (a
            `DatasetDict` will do); "test" may be missing.
        transform: Image to tensor of one shape, such as `timm.data.create_transform(...)`.
        train_transform: For the training data; default `transform`.
        num_labels: Classes; default: the label feature's, or else the largest training label + 1.
        image: Column of the images.
        label: Column of the integer labels.
        **options: Further fields of `Task`, such as `head` and `metrics`.

    Raises:
        ValueError: a split or column that is missing.
    """
    data: dict[str, Data] = {}
    for split in ("train", "validation", "test"):
        if split not in splits:
            if split != "test":
                raise ValueError(f"task {name!r}: no split {split!r} among {sorted(splits)}")
            continue
        table = splits[split]
        for column in (image, label):
            if column not in table.column_names:
                raise ValueError(
                    f"task {name!r}, {split} data: no column {column!r} among {table.column_names}"
                )
        chosen = train_transform if split == "train" and train_transform else transform
        data[split] = _ImageData(table, chosen, image, label)
    feature = splits["train"].features[label]
    if num_labels is None:
        declared = getattr(feature, "num_classes", None)
        num_labels = declared or max(splits["train"][label], default=0) + 1
    if getattr(feature, "num_classes", None) == num_labels:
        options = {"label_names": tuple(feature.names)} | options
    return Task(
        name, data["train"], data["validation"], num_labels, test=data.get("test"), **options
    )


class _ImageData:
    def __init__(
        self, table: Any, transform: Callable[[Any], Tensor], image: str, label: str
    ) -> None:
        self._table = table
        self._transform = transform
        self._image = image
        self._label = label
        self.columns = {LABELS: torch.as_tensor(list(table[label]))}

    def __len__(self) -> int:
        return len(self._table)

    def content_hash(self) -> str:
        """SHA-256 of the untransformed pixels and labels (a transform may be random) and of the
        transform as it shows itself, without addresses in memory."""
        shown = re.sub(r" at 0x[0-9a-f]+", "", repr(self._transform))
        digest = hashlib.sha256(shown.encode())
        for row, label in zip(self._table, self.columns[LABELS].tolist()):
            picture = row[self._image]
            digest.update(f"{picture.mode}{picture.size}{label};".encode())
            digest.update(picture.tobytes())
        return digest.hexdigest()

    def __getitem__(self, indices: list[int]) -> dict[str, Tensor]:
        images = self._table[indices][self._image]
        return {
            "pixel_values": torch.stack([self._transform(picture) for picture in images]),
            LABELS: self.columns[LABELS][torch.as_tensor(indices)],
        }
