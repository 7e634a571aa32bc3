"""Data sets as a Trainer takes them: checked, cut, told apart, and tokenised if it does that."""

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


def prepared(trainer: Any, task: str, data: Any) -> Any:
    """The data as they are, or what the Trainer's own `evaluate` makes of them.

    A plain Trainer takes rows that are tokenised. Others, as TRL's SFTTrainer, tokenise texts and
    chats when they are made and when they evaluate; a mixture is sampled after that. So data of
    which the Trainer can't make a batch are given to its `evaluate`, which is ended where it has
    prepared them.
    """
    refused = _refusal(trainer, data)
    if refused is None:
        return data
    found = _prepared_by_evaluate(trainer, data)
    if found is None or _refusal(trainer, found) is not None:
        columns = getattr(data, "column_names", None) or type(data[0]).__name__
        raise ValueError(
            f"task {task!r}: the Trainer can't make a batch of the training data, whose rows have "
            f"{columns}: {refused}. Expected rows as its collator takes them, or as its evaluate "
            f"prepares them"
        ) from refused
    return found


def _refusal(trainer: Any, data: Any) -> Exception | None:
    """Why no batch of the first row can be made; None: it can."""
    try:
        next(iter(trainer.get_eval_dataloader(rows_of(data, [0]))))
    except Exception as error:  # of collators, tokenizers and transforms
        return error
    return None


class _Prepared(Exception):
    """Ends an evaluation that has prepared its data."""


def _prepared_by_evaluate(trainer: Any, data: Any) -> Any:
    found: list[Any] = []

    def kept(data: Any = None) -> Any:
        found.append(data)
        raise _Prepared

    trainer.get_eval_dataloader = kept  # hides the method, and is taken away again
    try:
        trainer.evaluate(data)
    except _Prepared:
        return found[0]
    except Exception:  # it doesn't take such data either
        return None
    finally:
        del trainer.get_eval_dataloader
    return None
