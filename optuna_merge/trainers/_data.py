"""Data sets as a Trainer takes them: checked, cut, and told apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

_HASHED = 1000
"""Rows that a data set's hash is over."""


def check_data(task: str, what: str, data: Any) -> None:
    """See that a data set has a length and rows."""
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise TypeError(
            f"task {task!r}: the {what} data are a {type(data).__name__}, which has no length or "
            f"no rows by number; expected a map-style data set, such as a datasets.Dataset"
        )
    if len(data) == 0:
        raise ValueError(
            f"task {task!r}: the {what} data are empty; expected at least one example"
        )


def rows_of(data: Any, rows: Sequence[int]) -> Any:
    """Some of the rows, as a data set of the same kind where it can be cut itself."""
    return data.select(rows) if hasattr(data, "select") else Subset(data, rows)


def describe_data(data: Any) -> dict[str, Any]:
    """Length of a data set, and a hash of its rows, of many of a thousand at even distances."""
    count = len(data)
    digest = hashlib.sha256()
    for place in range(min(count, _HASHED)):
        row = data[place * count // min(count, _HASHED)]
        digest.update(json.dumps(row, sort_keys=True, default=_plain).encode())
    return {"examples": count, "sha256": digest.hexdigest()}


def _plain(value: Any) -> Any:
    """JSON values of what a row may hold besides."""
    if isinstance(value, Tensor):
        numbers = value.detach().cpu().contiguous()
        content = numbers.flatten().view(torch.uint8).numpy().tobytes() if numbers.numel() else b""
        return [str(value.dtype), list(value.shape), hashlib.sha256(content).hexdigest()]
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "tobytes"):  # images
        return hashlib.sha256(value.tobytes()).hexdigest()
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    raise TypeError(
        f"a row holds a {type(value).__name__}, of which no hash is taken; expected numbers, "
        f"texts, lists, tensors or images"
    )
