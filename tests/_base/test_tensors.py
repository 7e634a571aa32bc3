from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from helpers import flip_byte, largest_file, same
from safetensors.torch import save_file
from torch import Tensor

from optuna_merge._base.tensors import (
    HASH,
    content_hash,
    load_tensors,
    read_metadata,
    save_tensors,
)
from optuna_merge.exceptions import CorruptFileError


def example() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "b": torch.randn(3, 2, generator=generator),
        "a": torch.arange(4),
        "half": torch.ones(2).to(torch.bfloat16),
        "flags": torch.tensor([True, False]),
        "one": torch.tensor(3.0),
        "none": torch.zeros(0, 5),
        "turned": torch.randn(2, 3, generator=generator).T,
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_tensors(example(), tmp_path / "file.safetensors", {"task": "red"})
    return tmp_path / "file.safetensors"


def test_tensors_and_metadata_come_back_as_they_were(path: Path) -> None:
    tensors, metadata = load_tensors(path)
    assert same(tensors, example())
    assert {name: t.dtype for name, t in tensors.items()} == {
        name: t.dtype for name, t in example().items()
    }
    assert metadata == {"task": "red", HASH: content_hash(example(), {"task": "red"})}
    assert read_metadata(path) == metadata


def test_the_hash_is_of_the_content(path: Path) -> None:
    first = read_metadata(path)[HASH]
    assert save_tensors(dict(reversed(example().items())), path, {"task": "red"}) == first
    changed = example()
    changed["b"][0, 0] += 1e-6
    hashes = {
        save_tensors(changed, path, {"task": "red"}),
        save_tensors(example(), path, {"task": "blue"}),
        save_tensors(example(), path),
        save_tensors(example() | {"b": example()["b"].view(2, 3)}, path, {"task": "red"}),
        save_tensors(example() | {"a": torch.arange(4).float()}, path, {"task": "red"}),
        save_tensors({"c" if n == "b" else n: t for n, t in example().items()}, path),
        first,
    }
    assert len(hashes) == 7


def test_any_altered_byte_is_noticed(path: Path) -> None:
    """Header, metadata and tensors alike."""
    size = path.stat().st_size
    assert size < 2000
    for position in range(size):
        flip_byte(path, position)
        with pytest.raises(CorruptFileError, match=re.escape(str(path))):
            load_tensors(path)
        flip_byte(path, position)
    load_tensors(path)


def test_any_cut_is_noticed(path: Path) -> None:
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(CorruptFileError, match=re.escape(str(path))):
            load_tensors(path)
        with pytest.raises(CorruptFileError, match=re.escape(str(path))):
            read_metadata(path)
    path.write_bytes(content + b"0")
    with pytest.raises(CorruptFileError, match=re.escape(str(path))):
        load_tensors(path)


def test_files_of_others_and_missing_files_are_named(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(1)}, foreign)
    with pytest.raises(CorruptFileError, match=r"foreign\.safetensors has no content hash; it w"):
        load_tensors(foreign)
    for read in (load_tensors, read_metadata):
        with pytest.raises(FileNotFoundError, match=r"no file .*missing"):
            read(tmp_path / "missing")
        with pytest.raises(FileNotFoundError):
            read(tmp_path)


def test_a_full_disk_is_named_and_the_old_file_stays(path: Path) -> None:
    before = path.read_bytes()
    with largest_file(1000), pytest.raises(OSError, match=re.escape(f"can't write {path}: ")):
        save_tensors({"large": torch.zeros(1000)}, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
