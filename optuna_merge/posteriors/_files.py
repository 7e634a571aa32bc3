"""Posteriors in safetensors files that carry a hash of their content.

The format is specified in this folder's README.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, cast

from torch import Tensor

from optuna_merge._base.files import canonical_json
from optuna_merge._base.tensors import HASH, load_tensors, save_tensors
from optuna_merge.exceptions import CorruptFileError
from optuna_merge.posteriors._families import CLASSES, Posterior

_LAYOUT = "posterior"


def save_posterior(
    posterior: Posterior, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> str:
    """Write a posterior of any family to one safetensors file, atomically.

    Args:
        posterior: Any of this package's families, on any device.
        path: The file; its folder is made if missing, an old file is replaced.
        metadata: Texts by name, for instance the task, the estimator, the data's hash. The names
            `posterior` and `sha256` are reserved.

    Returns:
        The content hash: hexadecimal SHA-256 over names, shapes, dtypes, bytes and metadata.

    Raises:
        TypeError: not a posterior, or metadata that is not text.
        ValueError: a reserved name in the metadata.
        OSError: the file can't be written; nothing is left half-written.
    """
    if type(posterior).__name__ not in CLASSES:
        raise TypeError(
            f"can't save a {type(posterior).__name__}; expected one of {', '.join(CLASSES)}"
        )
    for key, text in (metadata or {}).items():
        if key in (_LAYOUT, HASH):
            raise ValueError(f"metadata may not hold {key!r}: the name is reserved")
        if not isinstance(key, str) or not isinstance(text, str):
            raise TypeError(
                f"metadata {key!r} is of type {type(text).__name__}; names and values must be "
                f"text: use json.dumps"
            )
    tensors: dict[str, Tensor] = {}
    layout = canonical_json(_flatten(posterior, "", tensors))
    return save_tensors(_apart(tensors), path, {**(metadata or {}), _LAYOUT: layout})


def load_posterior(path: str | os.PathLike[str]) -> Posterior:
    """Read and verify a posterior that `save_posterior` wrote; its tensors keep their order.

    Raises:
        CorruptFileError: truncated, altered, or not a posterior.
        FileNotFoundError: no such file.
    """
    tensors, metadata = load_tensors(path)
    if _LAYOUT not in metadata:
        raise CorruptFileError(
            f"{path} holds tensors but no posterior; expected a file written by save_posterior"
        )
    try:
        return cast(Posterior, _build(json.loads(metadata[_LAYOUT]), "", tensors))
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(
            f"{path}: the posterior's layout {metadata[_LAYOUT][:80]!r} is not one that this "
            f"version can read ({error!r})"
        ) from error


def _flatten(value: Any, prefix: str, tensors: dict[str, Tensor]) -> Any:
    """Put a posterior's tensors into `tensors`; return how to put them together again."""
    if type(value).__name__ in CLASSES:
        parts = {
            field.name: _flatten(getattr(value, field.name), f"{prefix}{field.name}", tensors)
            for field in fields(value)
        }
        return {"family": type(value).__name__, "fields": parts}
    if isinstance(value, Tensor):
        tensors[prefix] = value
        return "tensor"
    if isinstance(value, Mapping):
        return {"dict": [[k, _flatten(v, f"{prefix}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, tuple | list):
        return {"tuple": [_flatten(v, f"{prefix}/{k}/", tensors) for k, v in enumerate(value)]}
    return {"value": value}


def _build(layout: Any, prefix: str, tensors: Mapping[str, Tensor]) -> Any:
    """Undo `_flatten`."""
    match layout:
        case "tensor":
            return tensors[prefix]
        case {"family": name, "fields": parts}:
            return CLASSES[name](
                **{part: _build(how, f"{prefix}{part}", tensors) for part, how in parts.items()}
            )
        case {"dict": parts}:
            return {key: _build(how, f"{prefix}/{key}", tensors) for key, how in parts}
        case {"tuple": parts}:
            return tuple(_build(how, f"{prefix}/{k}/", tensors) for k, how in enumerate(parts))
        case {"value": value}:
            return value
    raise ValueError(f"unknown part {layout!r}")


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, no two of them overlapping in memory, which safetensors won't write."""
    apart = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    end = 0
    for name, tensor in sorted(apart.items(), key=lambda item: item[1].data_ptr()):
        if tensor.data_ptr() < end:
            apart[name] = tensor.clone()
        end = max(end, tensor.data_ptr() + tensor.nbytes)
    return apart
