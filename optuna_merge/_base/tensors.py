"""Named tensors in one safetensors file with a content hash, written atomically."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from optuna_merge._base.files import atomic_path, canonical_json
from optuna_merge.exceptions import CorruptFileError

_logger = logging.getLogger(__name__)

_Loaded = TypeVar("_Loaded")

HASH = "sha256"
"""Key of the content hash in the file's metadata."""


def content_hash(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 over the metadata and every tensor's name, type, shape and bytes, in name order."""
    described = {key: value for key, value in metadata.items() if key != HASH}
    digest = hashlib.sha256(canonical_json(described).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """A safetensors file, of which parts are read; damage is a `CorruptFileError`."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise CorruptFileError(f"{path} is truncated or damaged: {error}") from error


def save_tensors(
    tensors: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Write tensors and metadata to `path`; return the content hash, which is in the metadata."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    described = dict(metadata or {})
    described[HASH] = content_hash(plain, described)
    with atomic_path(path) as temporary:
        try:
            save_file(plain, temporary, described)
        except SafetensorError as error:  # a full disk, say
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else 0, str(error)) from error
    return described[HASH]


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The file's metadata, without reading its tensors (so their hash is not checked).

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFileError: not a safetensors file, or one without a content hash.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    with opened(path) as file:
        metadata = dict(file.metadata() or {})
    if HASH not in metadata:
        raise CorruptFileError(f"{path} has no content hash; it was not written by optuna_merge")
    return metadata


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata, and check the content hash.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFileError: the file is truncated or altered.
    """
    metadata = read_metadata(path)
    with opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    found = content_hash(tensors, metadata)
    if found != metadata[HASH]:
        raise CorruptFileError(
            f"{path} was altered: its content hash is {found}, but {metadata[HASH]} was written; "
            f"delete it, and it will be made again"
        )
    return tensors, metadata


def load_sound(
    path: Path, load: Callable[[Path], _Loaded], again: str = "making it again"
) -> _Loaded | None:
    """What the file holds; None if there is none or it is damaged, so that it is made again."""
    try:
        return load(path)
    except FileNotFoundError:
        return None
    except CorruptFileError as error:
        _logger.warning("%s: %s", again, error)
        return None


def load_pickled(path: Path, *, where: str | None = None, advice: str = "") -> Any:
    """What `torch.save` wrote, if it is tensors and plain containers; nothing is executed."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CorruptFileError(
            f"{where or path} is damaged, or holds more than tensors, which is not "
            f"executed{advice} ({str(error)[:80]})"
        ) from error
