from __future__ import annotations

import re
from pathlib import Path

from commands.command_line import fails, prints


def test_gc_removes_what_it_has_named(folder: Path) -> None:
    flags = ("--n-trials", "18", "--fraction", "1", "--seed", "0")
    prints("optimize", "toy.py", *flags)
    models = set(Path("workdir/finetunes").glob("*/model.safetensors"))
    named = prints("gc", "toy.py", "--keep-best", "1", "--dry-run")
    assert re.search(r"model\.safetensors: finetune of trials \d+, \d+, [\d,]+ bytes", named)
    assert set(Path("workdir/finetunes").glob("*/model.safetensors")) == models
    removed = prints("gc", "toy.py", "--keep-best", "1")
    assert sorted(removed.splitlines()) == sorted(
        named.replace("could be removed", "removed").splitlines()
    )
    left = set(Path("workdir/finetunes").glob("*/model.safetensors"))
    gone = {path for path in models if str(path) in named}
    assert gone and left == models - gone
    assert "0 files, 0 bytes removed" in prints("gc", "toy.py", "--keep-best", "1")
    assert "keep_best" in fails("gc", "toy.py", "--keep-best", "0")
