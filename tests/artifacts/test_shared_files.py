from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

import optuna
import pytest
from helpers import files_below, toy_definition
from optuna.artifacts import FileSystemArtifactStore

import optuna_merge as om
from optuna_merge.artifacts import SharedFiles, _shared_files, open_artifact_store
from optuna_merge.exceptions import CorruptFileError


@pytest.fixture
def shared(tmp_path: Path) -> tuple[SharedFiles, SharedFiles]:
    """Two working folders of one study and store."""
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db")
    store = open_artifact_store(str(tmp_path / "store"))
    here, there = (SharedFiles(study, store, tmp_path / name) for name in ("here", "there"))
    return here, there


def test_files_travel_and_are_copied_once(
    shared: tuple[SharedFiles, SharedFiles], tmp_path: Path
) -> None:
    here, there = shared
    path = tmp_path / "here" / "a" / "b.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\0one")
    assert here.push([path]) == ["a/b.bin"]
    assert here.push([path]) == []
    assert there.pull() == ["a/b.bin"]
    assert (tmp_path / "there" / "a" / "b.bin").read_bytes() == b"\0one"
    assert there.pull() == []


def test_altered_bytes_are_refused(
    shared: tuple[SharedFiles, SharedFiles], tmp_path: Path
) -> None:
    here, there = shared
    path = tmp_path / "here" / "a.bin"
    path.parent.mkdir()
    path.write_bytes(b"one")
    here.push([path])
    stored = next((tmp_path / "store").iterdir())
    stored.write_bytes(b"two")
    with pytest.raises(CorruptFileError, match=r"a\.bin.*SHA-256"):
        there.pull()
    assert list((tmp_path / "there").iterdir()) == []


class Breaking(io.BytesIO):
    """A download that breaks off half-way."""

    def read(self, size: int | None = -1) -> bytes:
        raise ConnectionError("the connection broke")


def test_a_download_that_breaks_off_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Store(FileSystemArtifactStore):
        opened = 0

        def open_reader(self, artifact_id: str) -> BinaryIO:
            self.opened += 1
            if self.opened == 1:
                return Breaking()
            if self.opened == 2:
                return io.BytesIO(b"on")
            return super().open_reader(artifact_id)

    waits: list[float] = []
    monkeypatch.setattr(_shared_files.time, "sleep", waits.append)
    (tmp_path / "store").mkdir()
    store = Store(tmp_path / "store")
    study = optuna.create_study()
    (tmp_path / "here").mkdir()
    path = tmp_path / "here" / "a.bin"
    path.write_bytes(b"one")
    SharedFiles(study, store, tmp_path / "here").push([path])
    assert SharedFiles(study, store, tmp_path / "there").pull() == ["a.bin"]
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["a.bin"]
    assert (tmp_path / "there" / "a.bin").read_bytes() == b"one"
    assert waits == [0.1, 0.4]


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil"])
def test_paths_out_of_the_folder_are_refused(
    shared: tuple[SharedFiles, SharedFiles], name: str
) -> None:
    _, there = shared
    there._study.set_user_attr(f"file:{name}", {"artifact": "x", "sha256": "x"})
    with pytest.raises(CorruptFileError, match="outside the folder"):
        there.pull()


@pytest.mark.parametrize("url", ["ftp://host/x", "s3://", "s3://bucket/prefix"])
def test_unknown_stores_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="artifact store"):
        open_artifact_store(url)


def test_a_fit_is_taken_over_by_an_empty_folder(tmp_path: Path) -> None:
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db")
    store = open_artifact_store(str(tmp_path / "store"))
    fitted = om.fit(toy_definition(), tmp_path / "one", progress=False)
    SharedFiles(study, store, tmp_path / "one").push(fitted.files)
    SharedFiles(study, store, tmp_path / "two").pull()
    before = files_below(tmp_path / "two")
    again = om.fit(toy_definition(), tmp_path / "two", progress=False)
    assert again.fingerprint == fitted.fingerprint
    assert files_below(tmp_path / "two") == before, "nothing was made again"
