"""The lowest versions that pyproject.toml allows, as `.ci/minimum.py` prints them."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def minimum(*extras: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / ".ci" / "minimum.py", *extras]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_lowest_version_of_each_requirement_is_allowed_and_nothing_below_it() -> None:
    extras = [name for name in PROJECT["optional-dependencies"] if name != "test"]
    required = [Requirement(text) for text in PROJECT["dependencies"]]
    for name in extras:
        required += [Requirement(text) for text in PROJECT["optional-dependencies"][name]]
    done = minimum(*extras)
    lowest = dict(line.split("==") for line in done.stdout.splitlines())
    assert set(lowest) == {each.name for each in required}
    for each in required:
        assert Version(lowest[each.name]) in each.specifier
        assert not each.specifier.contains(f"{lowest[each.name]}.dev0", prereleases=True)


def test_without_extras_there_are_the_dependencies_alone() -> None:
    assert len(minimum().stdout.splitlines()) == len(PROJECT["dependencies"])


def test_an_unknown_extra_is_named_beside_the_known_ones() -> None:
    done = minimum("study")
    assert done.returncode == 1
    assert "Unknown extras ['study']" in done.stderr and "'studies'" in done.stderr
