"""What the loops read: data that is asked for a list of indices and answers with a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from optuna_merge._base.labels import IGNORED

Batch = dict[str, Tensor]
"""Tensors by column name, all with the same first dimension; the labels in column `labels`."""

LABELS = "labels"
MASK = "attention_mask"
DECODER = "decoder_input_ids"

_CHUNK = 1 << 20
"""Numbers that are looked through at once."""


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
        vocabulary: How many tokens the tokenizer has that made `input_ids`, where it is known.

    Raises:
        ValueError: no columns, or columns of different lengths.
    """

    def __init__(self, columns: Mapping[str, Tensor], *, vocabulary: int | None = None) -> None:
        lengths = {name: len(column) for name, column in columns.items()}
        if not lengths or len(set(lengths.values())) != 1:
            raise ValueError(
                f"columns must be tensors of one common length, one row an example; got {lengths}"
            )
        self.columns = dict(columns)
        self.vocabulary = vocabulary
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

    @cached_property
    def not_finite(self) -> tuple[str, int] | None:
        """Column and row of the first number that is NaN or infinite; looked for once."""
        return find_not_finite(self.columns)

    def with_column(self, name: str, column: Tensor) -> TensorData:
        """These data with one column more, computed from them, that is not looked through."""
        more = TensorData({**self.columns, name: column}, vocabulary=self.vocabulary)
        more.not_finite = self.not_finite
        return more

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


class CheckedData:
    """Data that are decoded when they are read: the numbers of each batch are checked then."""

    def __init__(self, data: Data, where: str) -> None:
        self.data = data
        self._where = where

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, indices: list[int]) -> Any:
        batch = self.data[indices]
        found = find_not_finite(batch)
        if found is not None:
            column, row = found
            raise not_finite_error(self._where, column, indices[row], batch[column][row])
        return batch

    def __getattr__(self, name: str) -> Any:
        if name == "data" or name.startswith("__"):  # looked for by copies, before it is there
            raise AttributeError(name)
        return getattr(self.data, name)


def as_data(data: Data | Mapping[str, Tensor], where: str) -> Data:
    """The data of a task, of finite numbers: those in memory are looked through now."""
    if isinstance(data, Mapping):
        data = TensorData(data)
    if not isinstance(data, TensorData):
        return CheckedData(data.data if isinstance(data, CheckedData) else data, where)
    if data.not_finite is not None:
        column, row = data.not_finite
        raise not_finite_error(where, column, row, data.columns[column][row])
    return data


def not_finite_error(where: str, column: str, index: int, values: Tensor) -> ValueError:
    """What to say of the first example whose numbers are not all finite."""
    bad = values[~torch.isfinite(values)].flatten()[0].item()
    return ValueError(
        f"{where}: column {column!r} is {bad} in example {index} (counted from 0); labels and "
        f"inputs must be finite numbers: leave such examples out or fill them in, and leave out "
        f"a column that the model does not read"
    )


def find_not_finite(columns: Mapping[str, Any]) -> tuple[str, int] | None:
    """Column and row of the first number that is NaN or infinite, column by column."""
    for name, column in columns.items():
        if not isinstance(column, Tensor) or column.ndim == 0:
            continue
        if not (column.is_floating_point() or column.is_complex()) or column.numel() == 0:
            continue
        rows = max(1, _CHUNK * len(column) // column.numel())
        for start in range(0, len(column), rows):
            finite = torch.isfinite(column[start : start + rows])
            if not bool(finite.all()):
                return name, start + int(finite.reshape(len(finite), -1).all(1).long().argmin())
    return None


def batches_in_order(
    data: Data, batch_size: int, indices: Sequence[int] | None = None
) -> list[list[int]]:
    """Lists that cover `indices` (default: all) once; where lengths are known, longest first."""
    order = list(range(len(data))) if indices is None else list(indices)
    lengths = getattr(data, "lengths", None)
    if lengths is not None:
        order.sort(key=lambda i: -int(lengths[i]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def unpadded_batches(data: Data, indices: Sequence[int], batch_size: int) -> Iterator[Batch]:
    """Batches of `indices` without any padding, and so without an attention mask.

    Examples of one length stand together. Models look into a mask, which vmap can't follow.
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
