"""Files that are never half-written: temporary name, fsync, rename; and their content hashes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside `path`; on success flush it and rename it there, else remove it."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=".tmp", dir=path.parent
        )
    except OSError as error:
        raise _named(error, path) from error
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes files private to the user; a shared folder needs the ordinary mode.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _named(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder beside, which takes the place of `folder` if the block does not raise."""
    parent = folder.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=parent))
    except OSError as error:
        reason = f"can't write {folder}: {error.strerror or error}; give another folder"
        raise type(error)(error.errno, reason) from error
    old = temporary.with_suffix(".old")
    try:
        yield temporary
        temporary.chmod(0o755)
        if folder.exists():
            folder.rename(old)
        try:
            temporary.rename(folder)
        except OSError:
            with suppress(OSError):
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Remove what killed writers of this file left beside it; to be called while none can live."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        left.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all in it, which is there whole or not at all."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    going = path.with_name(f".{path.name}.removed")
    shutil.rmtree(going, ignore_errors=True)  # a killed process has left it
    path.rename(going)
    shutil.rmtree(going)


def file_name(text: str) -> str:
    """`text` as a file's name; where it can't be one, what can of it and a hash."""
    safe = re.sub(r"[^\w .+=@-]", "_", text)[:80]
    return safe if safe == text and text.strip(". ") else f"{safe}-{sha256_text(text)[:8]}"


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinities are refused."""
    text = json.dumps(value, indent=2, allow_nan=False, sort_keys=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, no NaN. What fingerprints are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_text(text: str) -> str:
    """Hexadecimal SHA-256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def json_hash(value: Any) -> str:
    """Hexadecimal SHA-256 of a value's canonical JSON."""
    return sha256_text(canonical_json(value))


def short_hash(value: Any) -> str:
    """The first 24 digits of `json_hash`, for names of files and keys of units."""
    return json_hash(value)[:24]


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _named(error: OSError, path: Path) -> OSError:
    if str(path) in str(error) and "check that" in str(error):
        return error
    reason = error.strerror or str(error)
    return type(error)(
        error.errno,
        f"can't write {path}: {reason}; check that the folder exists, is writable and has free "
        f"disk space (nothing was left half-written)",
    )


def _umask() -> int:
    # There is no way to read the umask but to set it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders can't be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(folder: Path) -> None:
    """Make the folder, and see that a file can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
            file.flush()
    except OSError as error:
        raise type(error)(
            error.errno,
            f"can't write in the working folder {folder}: {error.strerror or error}; give another "
            f"with --workdir, or make room there",
        ) from error
