"""Merging from disk to disk, a block of each tensor at a time."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optuna_merge._base.checkpoint_files import check_unquantised, copy_side_files, naming_hint
from optuna_merge._base.files import atomic_path, whole_folder
from optuna_merge.merging._elementwise import Item, merge_items
from optuna_merge.merging._problem import Weights, check_sum, task_weights
from optuna_merge.merging._sources import BLOCK, DTYPES, Entry, Reader, Source, open_source

PathLike = str | os.PathLike[str]


def merge_files(
    paths: Sequence[PathLike] | Mapping[str, PathLike],
    weights: Weights,
    output: PathLike,
    *,
    keep: Callable[[str], bool] = lambda name: True,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """`merge` from safetensors files to safetensors files, in the memory of a few blocks.

    Args:
        paths: One per task: a Hugging Face folder or a safetensors file or its index (averaged,
            as isotropic with equal precisions), or an isotropic or diagonal posterior that
            `save_posterior` wrote. All of one kind. Of a folder those files are read that
            transformers would load, as in `load_checkpoint`.
        weights: One per task, in order or by name as in `merge`.
        output: A new folder, in the layout of `from_pretrained`, with the first task's
            configuration and tokenizer files; or a name that ends in .safetensors.
        keep: Tensors for whose name it is false are left out, for instance task heads.
        max_shard_bytes: A folder's tensors are cut into files of at most this size.

    Tensors that are not floating-point (counters, position ids) are copied if they are the same in
    all tasks, and refused otherwise. Content hashes of posteriors are not verified, for that would
    read them twice.

    Raises:
        FileNotFoundError: no such path, a folder without safetensors files, or a missing shard.
        FileExistsError: the output folder exists and is not empty.
        CorruptFileError: a truncated or damaged file, or an index whose tensors no file holds.
        TypeError, ValueError: as in `merge`, quantised weights, or adapters (their factors B alone
            may be merged). The message names the task, the file and the tensor. Whatever is
            raised, no output is left.
    """
    named = isinstance(paths, Mapping)
    tasks = list(paths) if isinstance(paths, Mapping) else [str(k) for k in range(len(paths))]
    places = list(paths.values()) if isinstance(paths, Mapping) else list(paths)
    if not places:
        raise ValueError("no files to merge; expected at least one")
    values = task_weights(weights, tasks, named=named)
    sources = [open_source(f"task {task!r}", place) for task, place in zip(tasks, places)]
    if len({source.diagonal for source in sources}) > 1:
        kinds = {source.label: "diagonal" if source.diagonal else "plain" for source in sources}
        raise TypeError(f"files of one merge must be of one family, got {kinds}")
    names = [name for name in sources[0].means if keep(name)]
    for source in sources:
        types = {k: (each.dtype, len(each.shape)) for k, each in source.means.items() if keep(k)}
        check_unquantised(f"{source.label}: {source.path}", types)
    _check(sources, values, names, keep)
    output = Path(output)
    with ExitStack() as stack:
        reader = Reader(stack)
        merged = _Merged(sources, values, reader)
        if output.suffix == ".safetensors":
            with atomic_path(output) as temporary:
                _write(temporary, {name: sources[0].means[name] for name in names}, merged)
            return
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise FileExistsError(f"{output} exists and is not an empty folder; take another name")
        with whole_folder(output) as folder:
            _write_shards(folder, sources[0], names, merged, max_shard_bytes)


class _Merged:
    """The merged tensors, as streams of bytes."""

    def __init__(
        self, sources: Sequence[Source], weights: Sequence[float], reader: Reader
    ) -> None:
        pairs = [(source, weight) for source, weight in zip(sources, weights) if weight]
        self._used = [source for source, _ in pairs]
        self._weights = [weight for _, weight in pairs]
        self._reader = reader

    def stream(self, name: str) -> Iterator[Tensor]:
        """Blocks of the merged tensor, as uint8."""
        entry = self._used[0].means[name]
        if entry.dtype not in DTYPES:
            yield from self._copied(name, entry)
            return
        total = math.prod(entry.shape)
        for start in range(0, total, BLOCK):
            stop = min(start + BLOCK, total)
            means: list[Tensor] = []
            precisions: list[Tensor | float] = []
            vanishing = False
            for source in self._used:
                means.append(self._reader.floats(source.means[name], start, stop))
                _check_block(source, "mean", name, means[-1], signed=True)
                precision = source.precisions[name]
                if isinstance(precision, Entry):
                    block = self._reader.floats(precision, start, stop)
                    lowest = _check_block(source, "precision", name, block, signed=False)
                    precisions.append(block)
                else:
                    lowest = precision
                    precisions.append(precision)
                vanishing |= lowest <= 0
            output = torch.empty_like(means[0])
            item = Item(output, means, precisions)
            merge_items([item], self._weights, vanishing=vanishing)
            yield output.view(torch.uint8)

    def _copied(self, name: str, entry: Entry) -> Iterator[Tensor]:
        size = entry.stop - entry.start
        for start in range(0, size, BLOCK):
            stop = min(start + BLOCK, size)
            first, *others = (
                self._reader.bytes(source.means[name], start, stop) for source in self._used
            )
            for source, other in zip(self._used[1:], others):
                if not torch.equal(first, other):
                    raise ValueError(
                        f"{source.label}: {name!r} is {entry.dtype} and differs from "
                        f"{self._used[0].label}'s ({source.means[name].file}, {entry.file}); only "
                        f"floating-point tensors are merged: leave it out with keep=..."
                    )
            yield first


def _check(
    sources: Sequence[Source],
    weights: Sequence[float],
    names: Sequence[str],
    keep: Callable[[str], bool],
) -> None:
    """Names, shapes, dtypes and numbers, before anything is read or written."""
    first = sources[0]
    if not names:
        raise ValueError(f"{first.label} has no tensors to merge")
    for source, weight in zip(sources, weights):
        if weight < 0 and any(each.diagonal for each in sources):
            raise ValueError(
                f"the weight of {source.label} is {weight:g}; from file to file the merged "
                f"precision's sign is not checked: load the posteriors and use merge"
            )
        for name in names:
            if name not in source.means:
                raise ValueError(
                    f"{source.label}: lacks the tensor {name!r} of {first.label} "
                    f"({source.path}){naming_hint(name, source.means)}"
                )
            mine, expected = source.means[name], first.means[name]
            if mine.shape != expected.shape or mine.dtype != expected.dtype:
                raise ValueError(
                    f"{source.label}: {name!r} is {mine.dtype} {list(mine.shape)}, but "
                    f"{first.label} has {expected.dtype} {list(expected.shape)} ({mine.file}, "
                    f"{expected.file})"
                )
            precision = source.precisions[name]
            if isinstance(precision, float | int) and not 0 <= precision < math.inf:
                raise ValueError(f"{source.label}: precision {name!r} is {precision}")
        extra = source.means.keys() - first.means.keys()
        if unexpected := sorted(filter(keep, extra)):
            raise ValueError(
                f"{source.label}: has a tensor {unexpected[0]!r} that {first.label} lacks "
                f"({source.path}); leave it out with keep=..."
            )
    for name in names:
        numbers = [p for s in sources if isinstance(p := s.precisions[name], float | int)]
        if len(numbers) == len(sources):
            check_sum(name, weights, numbers)


def _check_block(source: Source, role: str, name: str, block: Tensor, *, signed: bool) -> float:
    """Refuse NaN, infinities and, unless `signed`, negative values; return the lowest value."""
    lowest, highest = (value.item() for value in torch.aminmax(block))
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise ValueError(
            f"{source.label}: {role} {name!r} holds NaN or an infinity ({source.means[name].file})"
        )
    if lowest < 0 and not signed:
        raise ValueError(
            f"{source.label}: {role} {name!r} is negative ({lowest:g}); expected at least 0 "
            f"({source.means[name].file})"
        )
    return float(lowest)


def _write(path: Path, entries: Mapping[str, Entry], merged: _Merged) -> None:
    """One safetensors file: the header first, then tensor after tensor."""
    # Wide types first, so that every tensor starts at a multiple of its item's size.
    sizes = {n: (e.stop - e.start) // max(1, math.prod(e.shape)) for n, e in entries.items()}
    ordered = sorted(entries, key=lambda name: -sizes[name])
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in ordered:
        entry = entries[name]
        stop = offset + entry.stop - entry.start
        header[name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [offset, stop],
        }
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", 0) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in ordered:
            for block in merged.stream(name):
                view = block.numpy().data
                while len(view):
                    view = view[file.write(view) :]
        os.fsync(file.fileno())


def _write_shards(
    folder: Path, first: Source, names: Sequence[str], merged: _Merged, max_bytes: int
) -> None:
    shards: list[dict[str, Entry]] = [{}]
    size = total = 0
    for name in names:
        entry = first.means[name]
        length = entry.stop - entry.start
        if size and size + length > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = entry
        size += length
        total += length
    if len(shards) == 1:
        files = ["model.safetensors"]
    else:
        files = [
            f"model-{k:05}-of-{len(shards):05}.safetensors" for k in range(1, len(shards) + 1)
        ]
        index = {
            "metadata": {"total_size": total},
            "weight_map": {name: file for file, shard in zip(files, shards) for name in shard},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    for file, shard in zip(files, shards):
        _write(folder / file, shard, merged)
    if first.folder is not None:
        copy_side_files(first.folder, folder)
