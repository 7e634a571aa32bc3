"""What the loops read: data that is asked for a list of indices and answers with a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from optuna_merge._labels import IGNORED

Batch = dict[str, Tensor]
"""Tensors by column name, all with the same first dimension; the labels in column `labels`."""

LABELS = "labels"
MASK = "attention_mask"
DECODER = "decoder_input_ids"


@runtime_checkable
class Data(Protocol):
    """Examples by index. A `datasets.Dataset` in torch format is one, and so is `TensorData`."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, indices: list[int], /) -> Any:
        """A `Batch` of the examples at `indices`, in that order."""
        ...


class TensorData:
    """Columns held in memory, each a tensor with one row per example.

    With a column `attention_mask` (examples x length), a batch is cut to its longest example, so
    that padding costs nothing; every other column of that length is cut alike. With a column
    `decoder_input_ids` (examples x target length), that and the labels are cut to the batch's
    longest target instead, labels of -100 being its padding.

    Args:
        columns: Tensors of equal first dimension.

    Raises:
        ValueError: no columns, or columns of different lengths.
    """

    def __init__(self, columns: Mapping[str, Tensor]) -> None:
        lengths = {name: len(column) for name, column in columns.items()}
        if not lengths or len(set(lengths.values())) != 1:
            raise ValueError(
                f"columns must be tensors of one common length, one row an example; got {lengths}"
            )
        self.columns = dict(columns)
        mask = self.columns.get(MASK)
        self._length = None if mask is None else mask.shape[1]
        # Position of the last attended token plus one, so that left padding is never cut.
        self.lengths = None if mask is None else _lengths(mask)
        self._targets = (LABELS, DECODER) if DECODER in self.columns else ()
        self._target_lengths = (
            _lengths((self.columns[LABELS] != IGNORED).long()) if self._targets else None
        )

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, indices: list[int]) -> Batch:
        index = torch.as_tensor(indices)
        batch = {name: column[index] for name, column in self.columns.items()}
        if self._target_lengths is not None:
            longest = int(self._target_lengths[index].max())
            batch |= {name: batch[name][:, :longest] for name in self._targets}
        if self.lengths is None:
            return batch
        longest = int(self.lengths[index].max())
        return {
            name: column[:, :longest]
            if name not in self._targets and column.ndim > 1 and column.shape[1] == self._length
            else column
            for name, column in batch.items()
        }


def _lengths(mask: Tensor) -> Tensor:
    """Position of each row's last one, plus one; at least 1."""
    return (mask * torch.arange(1, mask.shape[1] + 1)).amax(1).clamp(min=1)


def as_data(data: Data | Mapping[str, Tensor]) -> Data:
    """`data` itself, or a mapping of tensors as `TensorData`."""
    return TensorData(data) if isinstance(data, Mapping) else data


def batches_in_order(
    data: Data, batch_size: int, indices: Sequence[int] | None = None
) -> list[list[int]]:
    """Index lists that cover `indices` (default: all) once.

    Examples are sorted by length where lengths are known (longest first, so that memory peaks at
    once); otherwise they stand in their given order.
    """
    order = list(range(len(data))) if indices is None else list(indices)
    lengths = getattr(data, "lengths", None)
    if lengths is not None:
        order.sort(key=lambda i: -int(lengths[i]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def unpadded_batches(data: Data, indices: Sequence[int], batch_size: int) -> Iterator[Batch]:
    """Batches of `indices` without any padding, and so without an attention mask.

    Examples of one length stand together. Models look into a mask, which vmap can't follow; where
    there is no padding they do as well without one. Data without lengths come as they are.
    """
    lengths = getattr(data, "lengths", None)
    groups: dict[int, list[int]] = {}
    for index in indices:
        groups.setdefault(0 if lengths is None else int(lengths[index]), []).append(index)
    for _, group in sorted(groups.items()):
        for start in range(0, len(group), batch_size):
            batch = dict(data[group[start : start + batch_size]])
            if lengths is not None and bool(batch[MASK].all()):
                del batch[MASK]
            yield batch


def to_device(batch: Mapping[str, Tensor], device: torch.device | str) -> Batch:
    """The batch's tensors on `device`."""
    return {name: column.to(device, non_blocking=True) for name, column in batch.items()}


def fingerprint(data: Data) -> str:
    """SHA-256 over the columns' names, types, shapes and bytes, in example order.

    The same examples give the same fingerprint on every machine, in whatever container they are.
    """
    content_hash = getattr(data, "content_hash", None)
    if content_hash is not None:  # data that transforms its examples at random, say
        return str(content_hash())
    digests: dict[str, Any] = {}
    for start in range(0, len(data), 1024):
        rows = list(range(start, min(start + 1024, len(data))))
        # TensorData would cut the padding: the fingerprint is of what is stored.
        batch = (
            {name: column[start : rows[-1] + 1] for name, column in data.columns.items()}
            if isinstance(data, TensorData)
            else data[rows]
        )
        for name, column in batch.items():
            digest = digests.setdefault(name, hashlib.sha256())
            if not isinstance(column, Tensor):
                raise TypeError(
                    f"column {name!r} must hold tensors of one shape, got "
                    f"{type(column).__name__}; use with_format('torch') and pad to one length"
                )
            digest.update(f"{column.dtype}{tuple(column.shape[1:])}".encode())
            contiguous = column.detach().cpu().contiguous()
            digest.update(contiguous.view(torch.uint8).numpy().tobytes() if column.ndim else b"")
    total = hashlib.sha256()
    for name in sorted(digests):
        total.update(f"{name}:{digests[name].hexdigest()};".encode())
    return total.hexdigest()
