"""What is imported when it is first used: names of a package, and packages of extras."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__`: each of the names from its module below the package."""

    def found(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)

    return found


def need(package: str, extra: str, what: str) -> None:
    """See that a package of an extra is installed."""
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"{what} needs {package}: pip install 'optuna-merge[{extra}]'")
