from __future__ import annotations

import errno
import math
import os
import re
import stat
from pathlib import Path

import pytest
from helpers import largest_file

from optuna_merge._base.files import (
    atomic_path,
    canonical_json,
    file_name,
    sha256_file,
    sha256_text,
    write_json,
)


def test_a_file_appears_at_once_and_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == path.parent  # or a rename would copy
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_was_there_survives_an_error(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_path(path) as temporary:
        temporary.write_text("new")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "file.json", 1)
        assert os.umask(0o027) == 0o027  # it was not changed
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file.json").stat().st_mode) == 0o640


def test_a_full_disk_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, "old")
    message = f"can't write {path}: File too large; check that the folder exists, is writable and"
    with (
        largest_file(1000),
        pytest.raises(OSError, match=re.escape(message)) as caught,
    ):
        write_json(path, ["long"] * 10_000)
    assert caught.value.errno == errno.EFBIG
    assert path.read_text() == '"old"\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "below.json"
    with pytest.raises(OSError, match=re.escape(f"can't write {path}: ")) as caught:
        write_json(path, 1)
    assert "(nothing was left half-written)" in str(caught.value)


def test_a_folder_in_the_file_s_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match=re.escape(f"can't write {tmp_path / 'taken'}: Is a dir")):
        write_json(tmp_path / "taken", 1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]


def test_json_holds_no_nan(tmp_path: Path) -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "file.json", {"a": value})
        with pytest.raises(ValueError, match="not JSON compliant"):
            canonical_json([value])
    assert list(tmp_path.iterdir()) == []


def test_one_value_has_one_text() -> None:
    assert canonical_json({"b": [1, 0.1], "a": "é"}) == canonical_json({"a": "é", "b": [1, 0.1]})
    assert canonical_json({"b": [1, 2], "a": None}) == '{"a":null,"b":[1,2]}'


def test_hashes_are_sha256(tmp_path: Path) -> None:
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_text("abc") == abc
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert sha256_file(path) == abc
    path.write_bytes(b"a" * 3_000_000)  # in several pieces
    assert sha256_file(path) == sha256_text("a" * 3_000_000)


def test_any_text_names_a_file_of_its_own(tmp_path: Path) -> None:
    texts = [
        "mine",
        "my study-1",
        "a/b",
        "a_b",
        "a:b",
        "../a",
        "..",
        ".",
        "é",
        "x" * 300,
        "x" * 301,
    ]
    names = [file_name(text) for text in texts]
    assert names[:2] == texts[:2]
    assert len(set(names)) == len(texts)
    for name in names:
        (tmp_path / f"report-{name}.json").write_text("{}")
    assert len(list(tmp_path.iterdir())) == len(texts)  # and none in another folder
