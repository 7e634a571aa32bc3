"""Safetensors files that are merged: what is in them, read a block at a time."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from optuna_merge._base.checkpoint_files import (
    PICKLE,
    adapter_parts,
    check_index,
    check_no_adapter,
    check_unquantised_folder,
    find_files,
    is_adapter,
    is_pickle,
)
from optuna_merge.exceptions import CorruptFileError
from optuna_merge.posteriors import CLASSES, Coupled

PathLike = str | os.PathLike[str]

BLOCK = 1 << 20
"""Elements read, merged and written at a time."""

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Entry:
    """Where one tensor's bytes are."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Source:
    """One checkpoint, or isotropic or diagonal posterior, from its headers."""

    label: str
    path: Path
    folder: Path | None
    means: dict[str, Entry]
    precisions: Mapping[str, Entry | float]
    diagonal: bool


class Reader:
    """Reads pieces of tensors; files stay open, buffers are made anew by the caller."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._files: dict[Path, BinaryIO] = {}

    def bytes(self, entry: Entry, start: int, stop: int) -> Tensor:
        """Bytes [start, stop) of a tensor, as uint8."""
        if entry.file not in self._files:
            self._files[entry.file] = self._stack.enter_context(entry.file.open("rb", 0))
        file = self._files[entry.file]
        buffer = torch.empty(stop - start, dtype=torch.uint8)
        view = buffer.numpy().data
        file.seek(entry.start + start)
        while len(view):
            count = file.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise CorruptFileError(f"{entry.file} is truncated")
            view = view[count:]
        return buffer

    def floats(self, entry: Entry, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of a floating-point tensor."""
        dtype = DTYPES[entry.dtype]
        size = dtype.itemsize
        return self.bytes(entry, start * size, stop * size).view(dtype)


def open_source(label: str, path: PathLike) -> Source:
    path = Path(path)
    if is_adapter(path):
        raise ValueError(
            f"{label}: {path} is an adapter's folder; give checkpoints of whole models: save the "
            f"tensors of load_checkpoint({str(path)!r}, base=...) with safetensors"
        )
    check_unquantised_folder(path)
    folder = path if path.is_dir() else None
    entries: dict[str, Entry] = {}
    metadata: dict[str, str] = {}
    files, index = find_files(path, pickles=False)
    for file in files:
        part, metadata = _header(file)
        entries |= part
    check_index(path, index, entries)
    layout = json.loads(metadata["posterior"]) if "posterior" in metadata else None
    if layout is None:
        check_no_adapter(f"{label}: {path}", entries)
        ones = dict.fromkeys(entries, 1.0)
        return Source(label, path, folder, entries, ones, diagonal=False)
    family, fields = layout["family"], layout["fields"]
    names = [name for name, _ in fields["mean"]["dict"]]
    means = {name: entries[f"mean/{name}"] for name in names}
    if module := next((m for m, parts in adapter_parts(names).items() if len(parts) > 1), None):
        raise ValueError(
            f"{label}: {path} is a posterior of several factors of {module!r}; from file to file "
            f"it is not checked that only one of them differs: load the posteriors and use merge"
        )
    if fields.keys() != {"mean", "precision"} or issubclass(CLASSES[family], Coupled):
        raise TypeError(
            f"{label}: {path} is a {family}; only isotropic and diagonal posteriors are merged "
            f"from file to file: load it and use merge"
        )
    precisions = _precisions(fields["precision"], means, entries)
    diagonal = any(isinstance(precision, Entry) for precision in precisions.values())
    return Source(label, path, None, means, precisions, diagonal)


def _precisions(
    field: Any, means: Mapping[str, Entry], entries: Mapping[str, Entry]
) -> dict[str, Entry | float]:
    """By name of a mean its precision: a tensor of its shape, or a number."""
    parts = dict(field["dict"]) if isinstance(field, dict) and "dict" in field else None
    found: dict[str, Entry | float] = {}
    with ExitStack() as stack:
        reader = Reader(stack)
        for name, mean in means.items():
            part = field if parts is None else parts[name]
            if part != "tensor":
                found[name] = part["value"]
                continue
            entry = entries["precision" if parts is None else f"precision/{name}"]
            if parts is not None and entry.shape == mean.shape:
                found[name] = entry
            elif not entry.shape:
                found[name] = float(reader.floats(entry, 0, 1))
            else:
                raise ValueError(
                    f"{entry.file}: precision {name!r} has shape {entry.shape}, expected "
                    f"{mean.shape} as of its mean"
                )
    return found


def _header(file: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """A safetensors file's tensors, in the order of their bytes, and its metadata."""
    if is_pickle(file):
        raise CorruptFileError(f"{file} is no safetensors file: {PICKLE}")
    size = file.stat().st_size
    with file.open("rb") as stream:
        try:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size - 8:
                raise ValueError("the header is longer than the file")
            header = json.loads(stream.read(length))
            metadata = header.pop("__metadata__", {})
            entries = {
                name: Entry(
                    file,
                    part["dtype"],
                    tuple(part["shape"]),
                    *(8 + length + offset for offset in part["data_offsets"]),
                )
                for name, part in header.items()
            }
            if max((entry.stop for entry in entries.values()), default=8 + length) != size:
                raise ValueError("the tensors do not end where the file ends")
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptFileError(
                f"{file} is truncated or no safetensors file: {error}"
            ) from error
    return dict(sorted(entries.items(), key=lambda item: item[1].start)), metadata
