"""Print the lowest versions that pyproject.toml allows, as constraints for pip.

`python .ci/minimum.py [EXTRA ...]` takes the dependencies of the package and of the extras named.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def minimum(requirement: str) -> tuple[str, str]:
    """Name and lowest version of a requirement `name[extra]>=VERSION,<ANOTHER; marker`."""
    found = re.match(r"([\w.-]+)(?:\[.*?\])?[^;]*?[>=]=\s*([\w.]+)", requirement)
    if found is None:
        raise SystemExit(
            f"pyproject.toml requires {requirement!r}, which has no lower bound: write >=VERSION."
        )
    return found[1], found[2]


def numbers(version: str) -> list[int]:
    """The numbers of a version, so that 2.10 is above 2.9."""
    return [int(part) for part in re.findall(r"\d+", version)]


def main(extras: list[str]) -> None:
    """Print a line for each requirement, sorted by name."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    known = project["optional-dependencies"]
    if unknown := set(extras) - set(known):
        raise SystemExit(f"Unknown extras {sorted(unknown)}: pyproject.toml has {sorted(known)}")
    lowest: dict[str, str] = {}
    for requirement in [*project["dependencies"], *(r for name in extras for r in known[name])]:
        name, version = minimum(requirement)
        lowest[name] = max(lowest.get(name, "0"), version, key=numbers)
    sys.stdout.writelines(f"{name}=={lowest[name]}\n" for name in sorted(lowest))


if __name__ == "__main__":
    main(sys.argv[1:])
