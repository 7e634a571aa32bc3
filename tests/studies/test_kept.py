from __future__ import annotations

from pathlib import Path

import pytest

from studies.kept import Splits, kept_splits

MADE: Splits = {"desk": {"train": [("a ü", 1), ("b", 0)], "test": []}}


def test_made_once_for_the_same_code_and_sizes(tmp_path: Path) -> None:
    code, calls = tmp_path / "data.py", []
    code.write_text("one")

    def make() -> Splits:
        calls.append(code.read_text())
        return MADE

    for _ in range(2):
        assert kept_splits(tmp_path, [str(code)], {"train": 2}, make) == MADE
    assert calls == ["one"]
    kept_splits(tmp_path, [str(code)], {"train": 3}, make)
    code.write_text("two")
    kept_splits(tmp_path, [str(code)], {"train": 3}, make)
    assert calls == ["one", "one", "two"]


def test_what_fails_is_not_kept(tmp_path: Path) -> None:
    def fail() -> Splits:
        raise ValueError("too few")

    with pytest.raises(ValueError, match="too few"):
        kept_splits(tmp_path, [], {}, fail)
    assert kept_splits(tmp_path, [], {}, lambda: MADE) == MADE
