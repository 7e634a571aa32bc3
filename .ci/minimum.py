"""Print the lowest versions that pyproject.toml allows, as constraints for pip.

`python .ci/minimum.py [EXTRA ...]` takes the dependencies of the package and of the extras named.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def minimum(requirement: str) -> str:
    """`name==VERSION` of a requirement `name[extra]>=VERSION,<ANOTHER; marker`."""
    found = re.match(r"([\w.-]+)(?:\[.*?\])?[^;]*?[>=]=\s*([\w.]+)", requirement)
    if found is None:
        raise SystemExit(
            f"pyproject.toml requires {requirement!r}, which has no lower bound: write >=VERSION."
        )
    return f"{found[1]}=={found[2]}"


def main(extras: list[str]) -> None:
    """Print a line for each requirement, sorted by name."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    known = project["optional-dependencies"]
    if unknown := set(extras) - set(known):
        raise SystemExit(f"Unknown extras {sorted(unknown)}: pyproject.toml has {sorted(known)}")
    required = {*project["dependencies"], *(name for extra in extras for name in known[extra])}
    sys.stdout.writelines(f"{minimum(name)}\n" for name in sorted(required))


if __name__ == "__main__":
    main(sys.argv[1:])
